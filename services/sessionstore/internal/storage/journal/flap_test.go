package journal

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// unread is a store of which sessions cannot be read while it is set.
type unread struct {
	storage.Store
	set    atomic.Bool
	misses atomic.Int64
}

func (u *unread) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	if u.set.Load() {
		u.misses.Add(1)
		return nil, storagetest.ErrDown
	}
	return u.Store.Get(ctx, id)
}

// TestNextOutageAtOnce: the store underneath goes away again right after the
// last write of a session was replayed. The session is still known, so it can be
// read and written.
func TestNextOutageAtOnce(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	u := &unread{Store: r.below.Store}
	r.below.Store = u
	id := r.create("ann")
	for round := range 3 {
		r.below.Set(storagetest.Refuses)
		must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event(fmt.Sprint("in outage ", round))}))
		u.misses.Store(0)
		u.set.Store(true)
		r.below.Set(storagetest.Works)
		storagetest.Until(t, "the write is replayed and the session cannot be read", func() bool { return r.Stats().Waiting == 0 && u.misses.Load() > 1 })
		r.below.Set(storagetest.Refuses)
		u.set.Store(false)
		must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event(fmt.Sprint("in the next ", round))}))
		must[*sessionv1.Session](t)(r.Get(ctx, id))
		r.drained()
	}
	page := must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 100}))
	var got []string
	for _, e := range page.Events {
		if e.GetType() == "input:text" {
			got = append(got, e.GetId())
		}
	}
	if want := "[in outage 0 in the next 0 in outage 1 in the next 1 in outage 2 in the next 2]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestKnownAfterReplay: that the answer to the first read of a replayed session
// is not believed, since replays of others came in between, does not make the
// session unknown. One that stays unknown whatever is read goes back all the same.
func TestKnownAfterReplay(t *testing.T) {
	for _, c := range []struct{ after, want int64 }{{1, 1}, {2, 2}, {1000, rereads}} {
		ctx := t.Context()
		var reads atomic.Int64
		r := newRig(t, t.TempDir())
		known := r.Store.opts.Base
		r.Store.opts.Base = func(id string) (*sessionv1.Session, time.Duration, error) {
			if n := reads.Load(); n > 0 && n < c.after {
				return nothingKnown(id)
			}
			return known(id)
		}
		id := r.create("ann")
		r.below.Set(storagetest.Refuses)
		must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("in outage")}))
		r.below.Store = &counted{Store: r.below.Store, reads: &reads}
		r.drained()
		if got := reads.Load(); got != c.want {
			t.Errorf("known after %d reads: read %d times, want %d", c.after, got, c.want)
		}
		r.close()
	}
}

// counted counts reads.
type counted struct {
	storage.Store
	reads *atomic.Int64
}

func (c *counted) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	c.reads.Add(1)
	return c.Store.Get(ctx, id)
}
