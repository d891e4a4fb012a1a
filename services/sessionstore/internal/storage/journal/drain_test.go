package journal

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// outage is what a client does in an outage: events, updates, and an extension
// between them.
func (r *rig) outage(id string) {
	r.t.Helper()
	ctx := context.Background()
	add := func(names ...string) {
		for _, name := range names {
			must[[]string](r.t)(r.Append(ctx, id, []*sessionv1.Event{event(name)}))
		}
	}
	add("1", "2")
	must[*sessionv1.Session](r.t)(r.Update(ctx, id, label("n", "1")))
	add("3")
	must[*sessionv1.Session](r.t)(r.Update(ctx, id, label("n", "2")))
	add("4")
	r.clock.Advance(9 * time.Minute) // it can be extended
	must[[]storage.ExtendResult](r.t)(r.Extend(ctx, []storage.Activity{{SessionID: id}}))
	add("5", "6")
	must[*sessionv1.Session](r.t)(r.End(ctx, id, "done"))
}

// TestReplaysEventsTogether: events are replayed with as few calls as may be, in the
// order of the log; also those of a session whose process was killed meanwhile, from
// whichever place on.
func TestReplaysEventsTogether(t *testing.T) {
	const all = 5
	for stop := range all + 1 {
		ctx := t.Context()
		r := newRig(t, t.TempDir())
		id := r.create("ann")
		inner := r.below.Store
		var mu sync.Mutex
		var calls []string
		count := func(next storage.Store, most int) storage.Store {
			return &hooked{Store: next, replay: func(ctx context.Context, w storage.Write) error {
				mu.Lock()
				defer mu.Unlock()
				if len(calls) == most {
					return storagetest.ErrDown
				}
				calls = append(calls, fmt.Sprint(operation(w), len(w.Append)+len(w.Earlier)))
				return next.Replay(ctx, w)
			}}
		}
		r.below.Set(storagetest.Refuses)
		r.outage(id)
		want := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 100}))
		r.below.Store = count(inner, stop)
		r.below.Set(storagetest.Works)
		storagetest.Until(t, "it has stopped", func() bool { mu.Lock(); defer mu.Unlock(); return len(calls) == stop })
		if stop < all {
			r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
			r.below.Store = count(r.below.Store, 1000)
		}
		r.drained()
		if want := []string{"AppendEvents4", "UpdateSession1", "ExtendTTL0", "AppendEvents2", "EndSession0"}; stop == all && !slices.Equal(calls, want) {
			t.Errorf("replayed by %v, want %v", calls, want)
		}
		got := must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 100}))
		if !slices.EqualFunc(got.Events[1:], want.Events, func(a, b *sessionv1.Event) bool {
			return a.GetId() == b.GetId() && a.GetType() == b.GetType() && a.GetCursor() == b.GetCursor()
		}) {
			t.Errorf("stopped after %d calls: the log is %v, want %v", stop, got.Events, want.Events)
		}
		s := must[*sessionv1.Session](t)(r.inner.Get(ctx, id))
		if n := r.Stats().DeadLetters; n != 0 || s.GetEndReason() != "done" || s.GetExtensionCount() != 1 || s.GetLabels()["n"] != "2" {
			t.Errorf("stopped after %d calls: %v, %d dead letters", stop, s, n)
		}
		r.close()
	}
}

// TestOneOfManyIsRefused: of events that are replayed together, those that are
// refused become dead letters, and those that are not are applied.
func TestOneOfManyIsRefused(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	inner := r.below.Store
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		for _, e := range w.Append {
			if e.GetId() == "bad" {
				return &storage.InvalidError{Field: "events", Value: "bad", Want: "another one"}
			}
		}
		return inner.Replay(ctx, w)
	}}
	r.below.Set(storagetest.Refuses)
	for _, name := range []string{"1", "2", "bad", "3", "4"} {
		must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event(name)}))
	}
	r.drained()
	var got []string
	for _, e := range must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 100})).Events {
		if e.GetType() == "input:text" {
			got = append(got, e.GetId())
		}
	}
	if letters, _ := r.DeadLetters(10, ""); !slices.Equal(got, []string{"1", "2", "3", "4"}) || len(letters) != 1 {
		t.Errorf("the log has %v, dead letters %v", got, letters)
	}
}

// TestWritesWaitForReplay: once the store underneath answers, a write waits until the
// earlier ones of its session are replayed and then goes there. It is accepted when
// that takes too long, and does not wait where nothing is replayed.
func TestWritesWaitForReplay(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir(), func(o *Options) { o.replayWait = 100 * time.Millisecond })
	defer r.close()
	slow, first := r.create("ann"), r.create("bob")
	inner := r.below.Store
	replays := make(chan struct{})
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		if w.SessionID == slow {
			<-replays
		}
		return inner.Replay(ctx, w)
	}}
	r.below.Set(storagetest.Refuses)
	begin := time.Now()
	for range 20 {
		must[[]string](t)(r.Append(ctx, slow, []*sessionv1.Event{event(storage.NewWriteID())}))
	}
	if took := time.Since(begin); took > 20*r.opts.replayWait/2 {
		t.Errorf("20 writes took %s in an outage", took)
	}
	must[[]string](t)(r.Append(ctx, first, []*sessionv1.Event{event("e")}))
	r.below.Set(storagetest.Works)
	storagetest.Until(t, "the other session has left", func() bool { return !r.holds(first) })

	// It waits, and then gives up.
	marked := r.marked
	must[[]string](t)(r.Append(ctx, slow, []*sessionv1.Event{event("too long")}))
	if r.marked != marked+1 || !r.holds(slow) {
		t.Error("a write that waited for too long was not accepted")
	}
	// It waits, and goes to the store underneath.
	r.opts.replayWait = time.Minute
	done := make(chan error, 1)
	go func() {
		_, err := r.Append(ctx, slow, []*sessionv1.Event{event("in time")})
		done <- err
	}()
	storagetest.Until(t, "it waits", func() bool {
		r.waiting.mu.Lock()
		defer r.waiting.mu.Unlock()
		return r.waiting.queues[slow].waiters == 1
	})
	close(replays)
	if err := <-done; err != nil || r.marked != marked+1 || r.holds(slow) {
		t.Errorf("%v, accepted by the journal: %v, still there: %v", err, r.marked != marked+1, r.holds(slow))
	}
	page := must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: slow, Tail: 2}))
	if len(page.Events) != 2 || page.Events[0].GetId() != "too long" || page.Events[1].GetId() != "in time" {
		t.Errorf("the log ends with %v", page.Events)
	}
}
