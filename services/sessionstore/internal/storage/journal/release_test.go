package journal

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestSweepWaits: a session whose activity waits here, or has only just been
// replayed, is let go by no replica, before the activity group has seen it; also
// when the process was killed meanwhile.
func TestSweepWaits(t *testing.T) {
	for _, crash := range []bool{false, true} {
		ctx := t.Context()
		r := newRig(t, t.TempDir())
		group := must[storage.FeedReader](t)(r.inner.OpenFeed(ctx, storage.ActivityGroup, "one"))
		acknowledge := func() {
			t.Helper()
			for {
				state := must[[]storage.GroupState](t)(r.inner.Groups(ctx))
				left := int64(0)
				for _, g := range state {
					left += g.Lag + g.Pending
				}
				if left == 0 {
					return
				}
				b := must[storage.FeedBatch](t)(group.Next(ctx, 1000))
				for _, e := range b.Entries {
					if err := group.Ack(ctx, []storage.FeedAck{{Shard: int(e.GetShard()), Cursor: e.GetCursor()}}); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		busy, idle := r.create("ann"), r.create("bob")
		acknowledge()
		must[storage.SweepResult](t)(r.Sweep(ctx))
		phase := func(id string) sessionv1.Session_Phase {
			t.Helper()
			return must[*sessionv1.Session](t)(r.inner.Get(ctx, id)).GetPhase()
		}
		over := func(id string) bool {
			t.Helper()
			return must[*sessionv1.Session](t)(r.inner.Get(ctx, id)).GetEndTime() != nil
		}

		r.below.Set(storagetest.Refuses)
		r.clock.Advance(9 * time.Minute)
		must[[]string](t)(r.Append(ctx, busy, []*sessionv1.Event{event("in time")}))
		_, err := r.Sweep(ctx)
		wantErr(t, err, storage.ErrUnavailable)
		r.clock.Advance(2 * time.Minute)
		// Another replica reaches the store before this one does.
		must[storage.SweepResult](t)(r.inner.Sweep(ctx))
		if over(busy) || over(idle) {
			t.Fatalf("let go while writes wait: %v, %v", phase(busy), phase(idle))
		}
		r.drained()
		if crash {
			r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
		}
		for range 3 { // replayed, but nobody has read it
			must[storage.SweepResult](t)(r.Sweep(ctx))
			must[storage.SweepResult](t)(r.inner.Sweep(ctx))
		}
		if over(busy) {
			t.Fatalf("let go before its activity was seen: %v", phase(busy))
		}
		// The activity service reads it and extends.
		at := r.clock.Now().Add(-2 * time.Minute)
		res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: busy, Time: at}}))
		if res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
			t.Fatalf("got %v", res[0])
		}
		acknowledge()
		r.clock.Advance(time.Second)
		for range 3 {
			must[storage.SweepResult](t)(r.Sweep(ctx))
		}
		if over(busy) || !over(idle) {
			t.Fatalf("after all was seen: busy over %v, idle over %v", over(busy), over(idle))
		}
		if err := group.Close(); err != nil {
			t.Fatal(err)
		}
		r.close()
	}
}

// TestHoldGivesWay: nothing is held for longer than settle_max.
func TestHoldGivesWay(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	must[storage.SweepResult](t)(r.Sweep(ctx))
	r.below.Set(storagetest.Refuses)
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("e")}))
	r.clock.Advance(10*time.Minute + settleMax/2)
	must[storage.SweepResult](t)(r.inner.Sweep(ctx))
	if s := must[*sessionv1.Session](t)(r.inner.Get(ctx, id)); s.GetEndTime() != nil {
		t.Fatalf("let go within settle_max: %v", s)
	}
	r.clock.Advance(settleMax/2 + time.Second)
	must[storage.SweepResult](t)(r.inner.Sweep(ctx))
	if s := must[*sessionv1.Session](t)(r.inner.Get(ctx, id)); s.GetEndTime() == nil {
		t.Fatalf("still held: %v", s)
	}
	r.drained()
	if n := r.Stats().DeadLetters; n != 1 {
		t.Errorf("%d dead letters, want the event that came too late", n)
	}
}

// TestHoldIsThatOfWhatWaits: sweeps are held from the earliest activity that
// waits, however long it has waited, and from no time so far back that the hold
// would count for nothing.
func TestHoldIsThatOfWhatWaits(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.clock.Advance(time.Minute)
	var from time.Time
	inner := r.below.Store
	r.below.Store = &hooked{
		Store: inner, hold: func(at time.Time) error { from = at; return nil },
		replay: func(context.Context, storage.Write) error { return storagetest.ErrDown },
	}
	sweep := func(what string, want time.Time) {
		t.Helper()
		must[storage.SweepResult](t)(r.Sweep(ctx))
		if !from.Equal(want) {
			t.Errorf("%s: held from %v, want %v", what, from, want)
		}
	}
	sweep("nothing waits", r.clock.Now())
	r.below.Set(storagetest.Refuses)
	at := r.clock.Now()
	r.clock.Advance(10 * time.Second)
	must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("e")}))
	r.below.Set(storagetest.Works)
	r.clock.Advance(10 * time.Second)
	sweep("an event waits", at.Add(10*time.Second))
	r.below.Set(storagetest.Refuses)
	must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: id, Time: at.Add(5 * time.Second)}}))
	r.below.Set(storagetest.Works)
	sweep("earlier activity waits", at.Add(5*time.Second))
	r.clock.Advance(2 * settleMax)
	sweep("it has waited for longer than settle_max", at.Add(5*time.Second))
	r.clock.Advance(storage.HoldLife(settleMax))
	sweep("it has waited for days", r.clock.Now().Add(clockMargin-storage.HoldLife(settleMax)))
}

// TestNoSweepWithoutAHold: a process that has told nobody what waits in its
// journal lets nothing go, and one that leaves with nothing holds nobody up.
func TestNoSweepWithoutAHold(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	var holds []time.Time
	swept := 0
	inner := r.below.Store
	down := true
	r.below.Store = &hooked{Store: inner, hold: func(at time.Time) error {
		if down {
			return storagetest.ErrDown
		}
		holds = append(holds, at)
		return nil
	}, sweep: func() { swept++ }}
	_, err := r.Sweep(ctx)
	wantErr(t, err, storage.ErrUnavailable)
	if swept != 0 {
		t.Error("swept without a hold")
	}
	down = false
	must[storage.SweepResult](t)(r.Sweep(ctx))
	r.close()
	if len(holds) != 2 || holds[0].IsZero() || !holds[1].IsZero() || swept != 1 {
		t.Errorf("holds %v, %d sweeps", holds, swept)
	}
}

// TestNoExtensionOfWhatMayBeGone: a session that was due before the last hold
// may have been let go by another replica, so a late report about it is not
// accepted for later; one about a session that was held is.
func TestNoExtensionOfWhatMayBeGone(t *testing.T) {
	for _, crash := range []bool{false, true} {
		ctx := t.Context()
		r := newRig(t, t.TempDir())
		id := r.create("ann")
		r.clock.Advance(9 * time.Minute)
		activity := []storage.Activity{{SessionID: id, Time: r.clock.Now()}}
		r.clock.Advance(2 * time.Minute)
		if crash {
			r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
			must[*sessionv1.Session](t)(r.Get(ctx, id)) // it is known again
		} else if err := r.publishHold(ctx); err != nil { // no sweep of our own
			t.Fatal(err)
		}
		r.below.Set(storagetest.Refuses)
		res := must[[]storage.ExtendResult](t)(r.Extend(ctx, activity))
		wantErr(t, res[0].Err, storage.ErrUnavailable)
		r.below.Set(storagetest.Works)
		if res = must[[]storage.ExtendResult](t)(r.Extend(ctx, activity)); res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
			t.Errorf("once the store answers again: %v", res[0])
		}
		r.close()
	}
}

// long creates a session that lives for two hours, and for another two with an
// extension.
func (r *rig) long(user string) *sessionv1.Session {
	r.t.Helper()
	s := r.fresh(user)
	now := r.clock.Now().UnixMilli()
	s.TtlPolicy = lifetime.Resolve(&sessionv1.TTLPolicy{BaseTtl: durationpb.New(2 * time.Hour), Extension: durationpb.New(2 * time.Hour)}, s.GetTtlPolicy())
	s.ExpireTime, s.CapTime = lifetime.Time(lifetime.Deadline(now, s.GetTtlPolicy())), lifetime.Time(lifetime.NewTerms(now, s.GetTtlPolicy()).Cap)
	out, _, err := r.Create(context.Background(), s, "")
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// extendInOutage accepts an extension a minute before the deadline.
func (r *rig) extendInOutage(s *sessionv1.Session) {
	r.t.Helper()
	r.clock.Advance(s.GetExpireTime().AsTime().Add(-time.Minute).Sub(r.clock.Now()))
	res := must[[]storage.ExtendResult](r.t)(r.Extend(context.Background(), []storage.Activity{{SessionID: s.GetId()}}))
	if res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		r.t.Fatalf("got %v", res[0])
	}
}

// TestHoldCountsFromEachDeadline: one replica is cut off for longer than settle_max,
// with a write that has waited for all that time. What it acknowledges for a session
// whose deadline comes late in the outage is applied, although another replica
// sweeps meanwhile.
func TestHoldCountsFromEachDeadline(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	other := r.beside(t.TempDir())
	defer func() { _ = other.Close() }()
	first, s := r.create("ann"), r.long("bob")
	sweep := func(by *rig) {
		t.Helper()
		must[storage.SweepResult](t)(by.Sweep(ctx))
	}
	sweep(r)
	sweep(other)
	r.below.Set(storagetest.Refuses)
	must[[]string](t)(r.Append(ctx, first, []*sessionv1.Event{event("oldest")}))
	for range 3 {
		r.clock.Advance(30 * time.Minute)
		sweep(other)
	}
	if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, first)); got.GetEndTime() == nil {
		t.Fatal("the other replica has expired nothing: it does not sweep")
	}
	r.extendInOutage(s)
	r.clock.Advance(30 * time.Minute)
	sweep(other)
	r.drained()
	for range 2 {
		sweep(other)
		sweep(r)
	}
	got := must[*sessionv1.Session](t)(r.inner.Get(ctx, s.GetId()))
	if got.GetEndTime() != nil || got.GetExtensionCount() != 1 || !got.GetExpireTime().AsTime().Equal(s.GetExpireTime().AsTime().Add(2*time.Hour)) {
		t.Errorf("after the outage it is %v", got)
	}
	// The event of the first one came too late, which is counted.
	if n := r.Stats().DeadLetters; n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// TestOwnSweepWaitsForExtensions: an outage lasts longer than settle_max after a
// deadline that was extended in it. The replica that acknowledged this does not
// expire the session before it has replayed the extension; another one may, and then
// the extension is a dead letter.
func TestOwnSweepWaitsForExtensions(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		ctx := t.Context()
		r, release := stuck(t, t.TempDir())
		s := r.long("ann")
		must[storage.SweepResult](t)(r.Sweep(ctx))
		r.below.Set(storagetest.Refuses)
		r.extendInOutage(s)
		r.clock.Advance(settleMax + 10*time.Minute)
		r.below.Set(storagetest.Works)
		must[storage.SweepResult](t)(r.Sweep(ctx)) // before anything was replayed
		if elsewhere {
			must[storage.SweepResult](t)(r.inner.Sweep(ctx))
		}
		if n := r.depth.Load(); n != 1 {
			t.Fatalf("%d writes wait", n)
		}
		release()
		r.drained()
		must[storage.SweepResult](t)(r.Sweep(ctx))
		got, letters := must[*sessionv1.Session](t)(r.inner.Get(ctx, s.GetId())), r.Stats().DeadLetters
		if lost := got.GetEndTime() != nil; lost != elsewhere || (got.GetExtensionCount() == 1) == elsewhere || (letters == 1) != elsewhere {
			t.Errorf("swept elsewhere %v: it is %v, with %d dead letters", elsewhere, got, letters)
		}
		if page, _ := r.DeadLetters(10, ""); elsewhere && (len(page) != 1 || page[0].Operation != "ExtendTTL" || page[0].SessionID != s.GetId()) {
			t.Errorf("dead letters %v", page)
		}
		r.close()
	}
}

// TestOwnSweepWaitsForWrites: an outage lasts longer than settle_max after a deadline.
// The replica that acknowledged events and an update before that deadline does not
// expire the session before it has replayed them.
func TestOwnSweepWaitsForWrites(t *testing.T) {
	ctx := t.Context()
	r, release := stuck(t, t.TempDir())
	defer r.close()
	s := r.long("ann")
	must[storage.SweepResult](t)(r.Sweep(ctx))
	r.below.Set(storagetest.Refuses)
	r.clock.Advance(s.GetExpireTime().AsTime().Sub(r.clock.Now()) - time.Minute)
	must[[]string](t)(r.Append(ctx, s.GetId(), []*sessionv1.Event{event("in time")}))
	must[*sessionv1.Session](t)(r.Update(ctx, s.GetId(), label("in", "time")))
	r.clock.Advance(settleMax + 10*time.Minute)
	r.below.Set(storagetest.Works)
	must[storage.SweepResult](t)(r.Sweep(ctx)) // before anything was replayed
	release()
	r.drained()
	must[storage.SweepResult](t)(r.Sweep(ctx))
	got := must[*sessionv1.Session](t)(r.inner.Get(ctx, s.GetId()))
	if page, _ := r.DeadLetters(10, ""); len(page) > 0 || got.GetLabels()["in"] != "time" || got.GetEndTime() == nil {
		t.Errorf("dead letters %v; it is %v", page, got)
	}
}

// TestOwnSweepWaitsForCreated: a session is created in an outage, and kept alive in it
// for longer than settle_max after its first deadline. No sweep of this replica comes
// between its creation and its extensions.
func TestOwnSweepWaitsForCreated(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	must[storage.SweepResult](t)(r.Sweep(ctx))
	r.below.Set(storagetest.Refuses)
	id := r.create("ann")
	for r.clock.Now().Before(time.UnixMilli(1_800_000_000_000).Add(settleMax + 20*time.Minute)) {
		r.clock.Advance(time.Minute)
		res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: id}}))
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
	}
	want := must[*sessionv1.Session](t)(r.Get(ctx, id))
	h := &hooked{Store: r.below.Store}
	h.replay = func(ctx context.Context, w storage.Write) error {
		if w.Create == nil {
			_, _ = r.Sweep(ctx)
		}
		return h.Store.Replay(ctx, w)
	}
	r.below.Store = h
	r.drained()
	got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id))
	if n := r.Stats().DeadLetters; n > 0 || got.GetEndTime() != nil || !got.GetExpireTime().AsTime().Equal(want.GetExpireTime().AsTime()) {
		t.Errorf("%d dead letters; it is %v, want %v", n, got, want)
	}
}

// TestSweepIsPostponedAfterEachOutage: how long a replica waited to replay an extension
// before the store underneath went away again does not count.
func TestSweepIsPostponedAfterEachOutage(t *testing.T) {
	ctx := t.Context()
	r, release := stuck(t, t.TempDir())
	defer r.close()
	s := r.long("ann")
	must[storage.SweepResult](t)(r.Sweep(ctx))
	r.below.Set(storagetest.Refuses)
	r.extendInOutage(s)
	r.clock.Advance(settleMax + 10*time.Minute)
	for range 3 {
		r.below.Set(storagetest.Works)
		must[storage.SweepResult](t)(r.Sweep(ctx))
		r.below.Set(storagetest.Refuses)
		r.clock.Advance(postponeMost)
		_, err := r.Sweep(ctx)
		wantErr(t, err, storage.ErrUnavailable)
	}
	release()
	r.drained()
	if n := r.Stats().DeadLetters; n > 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestSweepIsPostponedForABoundedTime: a replica that cannot replay an extension
// sweeps again after a while, since it may be a part of the store that is down.
func TestSweepIsPostponedForABoundedTime(t *testing.T) {
	ctx := t.Context()
	r, release := stuck(t, t.TempDir())
	defer r.close()
	defer release()
	s := r.long("ann")
	r.below.Set(storagetest.Refuses)
	r.extendInOutage(s)
	r.clock.Advance(settleMax + 10*time.Minute)
	r.below.Set(storagetest.Works)
	swept := 0
	r.below.Store.(*hooked).sweep = func() { swept++ }
	for range 2 {
		must[storage.SweepResult](t)(r.Sweep(ctx))
		r.clock.Advance(postponeMost / 2)
	}
	if swept != 0 {
		t.Error("not postponed")
	}
	must[storage.SweepResult](t)(r.Sweep(ctx))
	if swept != 1 {
		t.Error("postponed for ever")
	}
}

// TestNoExtensionOfWhatMayHaveExpired: settle_max after the deadline that the store
// underneath knows, any replica may have expired a session, so no further report
// about it is accepted.
func TestNoExtensionOfWhatMayHaveExpired(t *testing.T) {
	ctx := t.Context()
	r, release := stuck(t, t.TempDir())
	defer r.close()
	defer release()
	s := r.long("ann")
	r.below.Set(storagetest.Refuses)
	r.extendInOutage(s)
	r.clock.Advance(settleMax + time.Minute)
	res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: s.GetId()}}))
	wantErr(t, res[0].Err, storage.ErrUnavailable)
}

// TestExtensionOfWhatWasEnded: an extension of a session that somebody has ended is
// superseded, and no dead letter.
func TestExtensionOfWhatWasEnded(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	s := r.long("ann")
	r.below.Set(storagetest.Refuses)
	r.extendInOutage(s)
	must[*sessionv1.Session](t)(r.inner.End(ctx, s.GetId(), "elsewhere"))
	r.drained()
	if n := r.Stats().DeadLetters; n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestEveryActivityExtends: under EVERY_ACTIVITY, each of several events of one moment
// extends, also those that are reported in an outage.
func TestEveryActivityExtends(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	s := r.fresh("ann")
	s.TtlPolicy.Strategy = sessionv1.TTLPolicy_EVERY_ACTIVITY
	s = first(r.Create(ctx, s, ""))
	r.clock.Advance(time.Minute)
	at := r.clock.Now()
	report := func(event string) {
		t.Helper()
		res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: s.GetId(), Time: at, EventID: event}}))
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
	}
	report("a")
	must[*sessionv1.Session](t)(r.Get(ctx, s.GetId()))
	r.below.Set(storagetest.Refuses)
	for _, event := range []string{"a", "b", "c", "b"} {
		report(event)
	}
	r.drained()
	if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, s.GetId())); got.GetExtensionCount() != 3 {
		t.Errorf("extended %d times, want 3", got.GetExtensionCount())
	}
}

func first[V any](v V, _ bool, _ error) V { return v }
