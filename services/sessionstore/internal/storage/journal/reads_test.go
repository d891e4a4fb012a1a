package journal

import (
	"context"
	"errors"
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

// TestWhatWouldMissSome: while writes wait, what would leave out their sessions
// is not answered, although the store underneath could.
func TestWhatWouldMissSome(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	inner := r.below.Store
	var back, tried atomic.Bool
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		if !back.Load() {
			tried.Store(true)
			return storage.ErrExhausted // no verdict either
		}
		return inner.Replay(ctx, w)
	}}
	r.below.Set(storagetest.Refuses)
	id := r.create("ann")
	r.below.Set(storagetest.Works)
	storagetest.Until(t, "it was tried", tried.Load)
	asks := map[string]func() error{
		"List":        func() error { _, err := r.List(ctx, storage.ListQuery{Limit: 10}); return err },
		"ActiveUsers": func() error { _, err := r.ActiveUsers(ctx, storage.ListQuery{Limit: 10}); return err },
		"Census":      func() error { _, err := r.Census(ctx); return err },
		"RevokeUser":  func() error { _, err := r.RevokeUser(ctx, "acme", "ann", nil, ""); return err },
		"Explain":     func() error { _, err := r.Explain(ctx, id); return err },
	}
	for name, ask := range asks {
		if err := ask(); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	back.Store(true)
	r.drained()
	for name, ask := range asks {
		if err := ask(); err != nil {
			t.Errorf("%s once all is replayed: %v", name, err)
		}
	}
	if n := r.Stats().DeadLetters; n != 0 {
		t.Errorf("%d dead letters of a store that had no time", n)
	}
}
