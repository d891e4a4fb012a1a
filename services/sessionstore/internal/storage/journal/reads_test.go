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
	hold   func(from time.Time) error
	sweep  func()
}

func (h *hooked) Sweep(ctx context.Context) (storage.SweepResult, error) {
	if h.sweep != nil {
		h.sweep()
	}
	return h.Store.Sweep(ctx)
}

func (h *hooked) Hold(ctx context.Context, holder string, from time.Time) error {
	if h.hold != nil {
		if err := h.hold(from); err != nil {
			return err
		}
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

// blocked keeps what waits from being replayed until it is let go.
func (r *rig) blocked() (h *hooked, letGo func()) {
	var back atomic.Bool
	inner := r.below.Store
	h = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		if !back.Load() {
			return storagetest.ErrDown
		}
		return inner.Replay(ctx, w)
	}}
	r.below.Store = h
	return h, func() { back.Store(true) }
}

// TestTruncatedIsPassedOn: events that are missing in the store underneath are
// missing also when those that are left are told from here.
func TestTruncatedIsPassedOn(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	cursors := must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("before")}))
	h, letGo := r.blocked()
	h.list = func(context.Context, storage.EventQuery) (storage.EventPage, error) {
		return storage.EventPage{Next: cursors[0], Truncated: true}, nil
	}
	r.below.Set(storagetest.Refuses)
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("during")}))
	r.below.Set(storagetest.Works)
	page := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: cursors[0], Limit: 10}))
	if len(page.Events) != 1 || !page.Truncated {
		t.Errorf("got %+v", page)
	}
	letGo()
	r.drained()
}

// TestLostAnswerIsSeenOnce: an event that was applied although its answer was
// lost is read once while it waits to be replayed.
func TestLostAnswerIsSeenOnce(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("before")}))
	_, letGo := r.blocked()
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
	letGo()
	r.drained()
	page := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: after, Limit: 10}))
	if len(page.Events) > 0 {
		t.Errorf("once more: %v", page.Events)
	}
}
