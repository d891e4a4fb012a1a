package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestConcurrent: many callers while the store underneath comes and goes every
// few milliseconds, with pollers that must see each event once, in order.
func TestConcurrent(t *testing.T) {
	const sessions, events = 16, 150
	r := newRig(t, t.TempDir())
	defer r.close()
	r.opts.Marked, r.opts.Stale = nil, nil
	ids := make([]string, sessions)
	for i := range ids {
		ids[i] = r.create(fmt.Sprint("u", i))
	}
	r.Store.opts.Marked = func(context.Context) {}
	r.Store.opts.Stale = func(context.Context, time.Duration) {}

	var stop atomic.Bool
	var flapping sync.WaitGroup
	var outages atomic.Int64
	r.below.Set(storagetest.Refuses) // so that there is an outage, however fast the work is done
	flapping.Go(func() {
		for !stop.Load() {
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond) // the pace of the flapping, not a wait for anything
			r.below.Set(storagetest.Fault(rand.IntN(3)))
			outages.Add(1)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for i, id := range ids {
		work.Go(func() {
			for n := range events {
				r.retry(ctx, func() error {
					_, err := r.Append(ctx, id, []*sessionv1.Event{event(fmt.Sprint("e", n))})
					return err
				})
				if n%10 == i%10 {
					r.retry(ctx, func() error {
						_, err := r.Update(ctx, id, label("n", fmt.Sprint(n)))
						return err
					})
				}
			}
		})
		work.Go(func() { r.poll(ctx, t, id, events) })
	}
	work.Wait()
	stop.Store(true)
	flapping.Wait()
	r.drained()
	for i, id := range ids {
		k := &told{}
		for n := range events {
			k.events = append(k.events, fmt.Sprint("e", n))
			if n%10 == i%10 {
				k.label = fmt.Sprint(n)
			}
		}
		r.verify(t, id, k)
	}
	if st := r.Stats(); st.DeadLetters != 0 || st.Accepted == 0 {
		t.Errorf("stats: %+v", st)
	}
	t.Logf("%d changes of mind, %d of %d writes went through the journal", outages.Load(), r.Stats().Accepted, sessions*events)
}

func (r *rig) retry(ctx context.Context, call func() error) {
	for {
		err := call()
		if err == nil {
			return
		}
		if !errors.Is(err, storage.ErrUnavailable) || ctx.Err() != nil {
			r.t.Errorf("got %v", err)
			return
		}
	}
}

// poll follows a log by its cursor until it has seen every event.
func (r *rig) poll(ctx context.Context, t *testing.T, id string, events int) {
	t.Helper()
	seen, after := 0, "0"
	for seen < events && ctx.Err() == nil {
		page, err := r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: after, Limit: 50, Wait: 100 * time.Millisecond})
		if errors.Is(err, storage.ErrUnavailable) || page.Truncated {
			continue // what is missing comes once the store underneath is back
		}
		if err != nil {
			t.Errorf("poll: %v", err)
			return
		}
		for _, e := range page.Events {
			switch e.GetId() {
			case fmt.Sprint("e", seen):
				seen++
			case "session:created":
			default:
				t.Errorf("after %d events came %s at %s", seen, e.GetId(), e.GetCursor())
				return
			}
		}
		after = page.Next
	}
	if seen < events {
		t.Errorf("%d events of %d were seen", seen, events)
	}
}

// BenchmarkAccept is a write during an outage, by 64 callers: fsync included.
func BenchmarkAccept(b *testing.B) {
	r := newRig(b, filepath.Join(b.TempDir(), "j"))
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	r.Store.opts.Marked = func(context.Context) {}
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.Append(context.Background(), id, []*sessionv1.Event{event(fmt.Sprint(n.Add(1)))}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
