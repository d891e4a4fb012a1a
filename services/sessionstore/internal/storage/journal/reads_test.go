package journal

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// hooked is a store whose calls can be looked into.
type hooked struct {
	storage.Store
	replay func(ctx context.Context, w storage.Write) error
	list   func(ctx context.Context, q storage.EventQuery) (storage.EventPage, error)
	hold   func(from time.Time)
}

func (h *hooked) Hold(ctx context.Context, holder string, from time.Time) error {
	if h.hold != nil {
		h.hold(from)
	}
	return h.Store.Hold(ctx, holder, from)
}

func (h *hooked) Replay(ctx context.Context, w storage.Write) error {
	if h.replay != nil {
		return h.replay(ctx, w)
	}
	return h.Store.Replay(ctx, w)
}

func (h *hooked) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	if h.list != nil {
		return h.list(ctx, q)
	}
	return h.Store.ListEvents(ctx, q)
}

// also when those that are left are told from here.
func TestTruncatedIsPassedOn(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	cursors := must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("before")}))
	inner := r.below.Store
	h := &hooked{Store: inner, replay: func(context.Context, storage.Write) error { return storagetest.ErrDown }}
	r.below.Store = h
	r.below.Set(storagetest.Refuses)
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("during")}))
	h.list = func(context.Context, storage.EventQuery) (storage.EventPage, error) {
		return storage.EventPage{Next: cursors[0], Truncated: true}, nil
	}
	r.below.Set(storagetest.Works)
	page := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: cursors[0], Limit: 10}))
	if len(page.Events) != 1 || !page.Truncated {
		t.Errorf("got %+v", page)
	}
	h.replay = inner.Replay
	r.drained()
}

// lost is read once while it waits to be replayed.
func TestLostAnswerIsSeenOnce(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("before")}))
	var back atomic.Bool
	inner := r.below.Store
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		if !back.Load() {
			return storagetest.ErrDown
		}
		return inner.Replay(ctx, w)
	}}
	r.below.Set(storagetest.Loses)
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("during")}))
	r.below.Set(storagetest.Works)
	seen := map[string]int{}
	after := "0"
	for range 10 {
		page := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: after, Limit: 10}))
		for _, e := range page.Events {
			seen[e.GetId()]++
		}
		after = page.Next
	}
	if seen["during"] != 1 {
		t.Errorf("seen %v", seen)
	}
	back.Store(true)
	r.drained()
	page := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: after, Limit: 10}))
	if len(page.Events) > 0 {
		t.Errorf("once more: %v", page.Events)
	}
}
