package journal

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		clock := storagetest.NewClock()
		o := storagetest.OptionsFor(time.Second)
		inner, err := memory.New(memory.Options{
			Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention, Clock: clock.Now,
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(inner, Options{
			Dir: t.TempDir(), Clock: clock.Now, Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention,
			Base: nothingKnown,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return storagetest.Fixture{Store: s, Unit: time.Second, Now: clock.Now, Advance: clock.Advance}
	}, nil)
}

// TestOutage is a session's life through an outage, as its caller sees it.
func TestOutage(t *testing.T) {
	for _, fault := range []storagetest.Fault{storagetest.Refuses, storagetest.Loses} {
		t.Run(fmt.Sprint(fault), func(t *testing.T) {
			ctx := t.Context()
			r := newRig(t, t.TempDir())
			defer r.close()
			old := r.create("ann")
			must[[]string](t)(r.Append(ctx, old, []*sessionv1.Event{event("before")}))
			if r.marked != 0 {
				t.Fatalf("%d writes were marked while all was well", r.marked)
			}
			r.below.Set(fault)
			r.clock.Advance(9 * time.Minute)

			made := r.create("bob")
			must[*sessionv1.Session](t)(r.Update(ctx, made, label("a", "1")))
			must[[]string](t)(r.Append(ctx, made, []*sessionv1.Event{event("e1"), event("e2")}))
			cursors := must[[]string](t)(r.Append(ctx, old, []*sessionv1.Event{event("during")}))
			res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: old, Kind: "input", EventID: "during"}}))
			if got := res[0].Response.GetOutcome(); got != sessionv1.ExtendTTLResponse_EXTENDED {
				t.Fatalf("activity a minute before the deadline: %v", got)
			}
			updated := must[*sessionv1.Session](t)(r.Update(ctx, old, storage.Update{IfRevision: 2, SetLabels: map[string]string{"b": "2"}}))
			if r.marked != 6 {
				t.Errorf("%d calls of 6 were marked", r.marked)
			}

			// All of it is seen.
			if got := must[*sessionv1.Session](t)(r.Get(ctx, old)); !proto.Equal(got, updated) || got.GetLabels()["b"] != "2" {
				t.Errorf("it reads as %v", got)
			}
			page := must[storage.EventPage](t)(r.ListEvents(ctx, storage.EventQuery{SessionID: old, After: "0", Limit: 100}))
			if !page.Truncated || page.Events[0].GetCursor() != cursors[0] || len(page.Events) != 2 {
				t.Errorf("the log reads as %v", page)
			}
			if r.stale == 0 {
				t.Error("no answer was marked")
			}
			_, err := r.List(ctx, storage.ListQuery{Limit: 10})
			wantErr(t, err, storage.ErrUnavailable)
			_, err = r.Update(ctx, "unknown", label("a", "b"))
			wantErr(t, err, storage.ErrUnavailable)
			_, err = r.Update(ctx, old, storage.Update{IfRevision: 99})
			wantErr(t, err, storage.ErrUnavailable) // somebody else may have seen it
			_, err = r.Update(ctx, old, storage.Update{IfRevision: 1})
			wantErr(t, err, storage.ErrConflict)

			ended := r.create("eve")
			must[*sessionv1.Session](t)(r.End(ctx, ended, "done"))
			_, err = r.Append(ctx, ended, []*sessionv1.Event{event("late")})
			wantErr(t, err, storage.ErrEnded)
			gone := r.create("sam")
			if err := r.Delete(ctx, gone); err != nil {
				t.Fatal(err)
			}
			_, err = r.Get(ctx, gone)
			wantErr(t, err, storage.ErrNotFound)

			before := r.look(old, made, ended)
			r.drained()
			after := r.look(old, made, ended)
			if fault == storagetest.Loses {
				// What was applied at once, unknown to the caller, has its first cursor.
				strip(before)
				strip(after)
			}
			for id, b := range before {
				if a := after[id]; !proto.Equal(a.session, b.session) {
					t.Errorf("replayed it is\n%v, want\n%v", a.session, b.session)
				} else if !slices.Equal(a.events[len(a.events)-len(b.events):], b.events) {
					t.Errorf("its log is %v, want at its end %v", a.events, b.events)
				}
			}
			_, err = r.inner.Get(ctx, gone)
			wantErr(t, err, storage.ErrNotFound)
			if st := r.Stats(); st.Waiting != 0 || st.Bytes != 0 || st.DeadLetters != 0 || st.Drained == 0 {
				t.Errorf("stats: %+v", st)
			}
		})
	}
}

// strip leaves the ids of events alone.
func strip(all map[string]looks) {
	for _, l := range all {
		for i, e := range l.events {
			_, l.events[i], _ = strings.Cut(e, " ")
		}
	}
}

type looks struct {
	session *sessionv1.Session
	events  []string
}

// look returns what callers see of sessions.
func (r *rig) look(ids ...string) map[string]looks {
	r.t.Helper()
	out := map[string]looks{}
	for _, id := range ids {
		l := looks{session: must[*sessionv1.Session](r.t)(r.Get(context.Background(), id))}
		page := must[storage.EventPage](r.t)(r.ListEvents(context.Background(), storage.EventQuery{SessionID: id, After: "0", Limit: 1000}))
		for _, e := range page.Events {
			l.events = append(l.events, e.GetCursor()+" "+e.GetId())
		}
		out[id] = l
	}
	return out
}

// TestRestart: what waits is there after a crash, and seen as before.
func TestRestart(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	made := r.create("bob")
	for i := range 10 {
		r.clock.Advance(30 * time.Second)
		must[*sessionv1.Session](t)(r.Update(ctx, id, label("n", fmt.Sprint(i))))
		must[[]string](t)(r.Append(ctx, made, []*sessionv1.Event{event(fmt.Sprint("e", i))}))
	}
	r.clock.Advance(4 * time.Minute)
	must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: made, EventID: "e9"}}))
	before := r.look(id, made)
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
	for id, a := range r.look(id, made) {
		if b := before[id]; !proto.Equal(a.session, b.session) || !slices.Equal(a.events, b.events) {
			t.Errorf("after the crash it is\n%v, want\n%v", a, b)
		}
	}
	r.drained()
	if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id)); got.GetLabels()["n"] != "9" || got.GetRevision() != 11 {
		t.Errorf("replayed it is %v", got)
	}
	// Nothing of it comes back at the next start.
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("n", "later")))
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
	if r.depth.Load() != 0 {
		t.Errorf("%d writes wait", r.depth.Load())
	}
}

// TestRestartInASecondOutage: between the two the session was changed without
// the journal, which still holds what it accepted in the first.
func TestRestartInASecondOutage(t *testing.T) {
	ctx := t.Context()
	root := t.TempDir()
	r := newRig(t, filepath.Join(root, "a"))
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("first", "outage")))
	r.drained()
	between := must[*sessionv1.Session](t)(r.Update(ctx, id, label("between", "outages")))
	r.below.Set(storagetest.Refuses)
	told := must[*sessionv1.Session](t)(r.Update(ctx, id, storage.Update{IfRevision: between.GetRevision(), SetLabels: map[string]string{"second": "outage"}}))

	r.crash(filepath.Join(root, "b"), storagetest.Refuses)
	if got := must[*sessionv1.Session](t)(r.Get(ctx, id)); !proto.Equal(got, told) {
		t.Errorf("it reads as %v, its caller was told %v", got, told)
	}
	must[*sessionv1.Session](t)(r.Update(ctx, id, storage.Update{IfRevision: told.GetRevision(), SetLabels: map[string]string{"third": "update"}}))
	r.drained()
	got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id))
	if want := map[string]string{"first": "outage", "between": "outages", "second": "outage", "third": "update"}; !maps.Equal(got.GetLabels(), want) {
		t.Errorf("it has %v, want %v", got.GetLabels(), want)
	}
	if n := r.letters.count(); n > 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestRequestKey: one key makes one session, whoever of the two stores has it.
func TestRequestKey(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	r.below.Set(storagetest.Refuses)
	first, _, err := r.Create(ctx, r.fresh("ann"), "k")
	if err != nil {
		t.Fatal(err)
	}
	second, existed, err := r.Create(ctx, r.fresh("ann"), "k")
	if err != nil || !existed || second.GetId() != first.GetId() {
		t.Fatalf("got %v, %v, %v", second, existed, err)
	}
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
	second, existed, err = r.Create(ctx, r.fresh("ann"), "k")
	if err != nil || !existed || second.GetId() != first.GetId() {
		t.Fatalf("after a crash: got %v, %v, %v", second, existed, err)
	}
	r.drained()
	second, existed, err = r.Create(ctx, r.fresh("ann"), "k")
	if err != nil || !existed || second.GetId() != first.GetId() {
		t.Fatalf("after the outage: got %v, %v, %v", second, existed, err)
	}
	r.below.Set(storagetest.Refuses)
	second, existed, err = r.Create(ctx, r.fresh("ann"), "k")
	if err != nil || !existed || second.GetId() != first.GetId() {
		t.Fatalf("in the next outage: got %v, %v, %v", second, existed, err)
	}
	if err := r.Delete(ctx, first.GetId()); err != nil {
		t.Fatal(err)
	}
	second, existed, err = r.Create(ctx, r.fresh("ann"), "k")
	if err != nil || existed || second.GetId() == first.GetId() {
		t.Fatalf("once it was deleted: got %v, %v, %v", second, existed, err)
	}
}

// TestDeadline: past a deadline that may have moved, nobody knows.
func TestDeadline(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	r.clock.Advance(9 * time.Minute)
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("in time")}))
	r.clock.Advance(2 * time.Minute)
	_, err := r.Append(ctx, id, []*sessionv1.Event{event("late")})
	wantErr(t, err, storage.ErrUnavailable)
	_, err = r.Update(ctx, id, label("a", "b"))
	wantErr(t, err, storage.ErrUnavailable)
	_, err = r.End(ctx, id, "done")
	wantErr(t, err, storage.ErrUnavailable)
	res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: id}}))
	wantErr(t, res[0].Err, storage.ErrUnavailable)
	// Activity from before the deadline is another matter, however late it is.
	at := r.clock.Now().Add(-2 * time.Minute)
	res = must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: id, Time: at}}))
	if res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		t.Fatalf("got %v", res[0])
	}
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("late")}))
	r.drained()
	page := must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 10}))
	if len(page.Events) != 4 {
		t.Errorf("the log is %v", page.Events)
	}
}
