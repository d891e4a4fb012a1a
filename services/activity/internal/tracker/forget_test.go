package tracker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

func TestForgetsSessionsThatAreOver(t *testing.T) {
	for _, typ := range []string{policy.TypeEnded, policy.TypeDeleted, policy.TypeExpired} {
		t.Run(typ, func(t *testing.T) {
			b := newBench(t)
			b.live("s")
			b.send("s", "input:text")
			b.now += flush
			it := b.due(1)
			b.send("s", "input:text")
			last := b.send("s", typ)
			b.acked(last.GetCursor())
			b.Applied(it, []Result{answer(sessionv1.ExtendTTLResponse_ENDED, base+24*hour, 0)}, b.now)
			if s := b.Stats(); s.Tracked != 0 || s.Outstanding != 0 || b.Busy() {
				t.Errorf("left: %+v", s)
			}
			if _, ok := b.NextDue(); ok {
				t.Error("something is still due")
			}
			if _, ok := b.NextUnresolved(); ok {
				t.Error("something is still to be asked for")
			}
		})
	}
}

func TestForgetsWhatTheStoreRulesOutAtOnce(t *testing.T) {
	b := newBench(t)
	b.send("refused", "input:text")
	b.send("over", "input:text")
	later := b.send("later", "input:text")
	ids := b.Unresolved(b.now, 10)
	if len(ids) != 3 || len(b.Unresolved(b.now, 10)) != 0 {
		t.Fatalf("asked for %v", ids)
	}
	ended := aSession("over", base)
	ended.EndTime = ts(base)
	b.Resolve([]Answer{{SessionID: "refused", Rejected: true}, {SessionID: "over", Session: ended}, {SessionID: "later", Retry: true}}, b.now, b.now)
	if s := b.Stats(); s.Tracked != 1 {
		t.Errorf("tracked %d, want only the one without an answer", s.Tracked)
	}
	if at, ok := b.NextUnresolved(); !ok || at != b.now+1000 {
		t.Errorf("next due %d %v, want after the pause", at, ok)
	}
	b.now += 1000
	if ids := b.Unresolved(b.now, 10); len(ids) != 1 {
		t.Fatalf("asked again for %v", ids)
	}
	b.Resolve([]Answer{{SessionID: "later", Session: aSession("later", base)}}, b.now, b.now)
	b.acked(fmt.Sprintf("%d-%d", base, 2))
	b.now += flush
	b.Applied(b.due(1), []Result{{Outcome: sessionv1.ExtendTTLResponse_ENDED}}, b.now)
	b.acked(later.GetCursor())
	if s := b.Stats(); s.Tracked != 0 {
		t.Errorf("tracked %d after ENDED", s.Tracked)
	}
}

func TestRedeliveredEntriesCountOnce(t *testing.T) {
	b := newBench(t)
	b.live("s")
	e := b.send("s", "input:text")
	b.now += flush
	it := b.due(1)
	b.Reset() // the stream broke before the acknowledgement
	b.acked("")
	b.Applied(it, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	// It has been judged already, so nothing more is to be done about it.
	b.acked(e.GetCursor())
	b.due(0)
	if s := b.Stats(); s.Counted[labelInput] != 1 || s.Redelivered != 1 {
		t.Errorf("counts %v, %d redelivered", s.Counted, s.Redelivered)
	}
}

// An event that was dropped with the stream, before its session was known, was
// never counted: it counts when it comes again.
func TestRedeliveredBeforeItWasJudgedCounts(t *testing.T) {
	b := newBench(t)
	e := b.send("s", "input:text")
	b.Reset()
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.Reset()
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.live("s")
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.now += flush
	b.due(1)
	if n := b.Stats().Counted[labelInput]; n != 1 {
		t.Errorf("counted %d times, want once", n)
	}
}

func TestRedeliveredBeforeItsAnswerWaits(t *testing.T) {
	b := newBench(t)
	b.live("s")
	e := b.send("s", "input:text")
	b.Reset()
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.acked("")
	b.now += flush
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	b.acked(e.GetCursor())
}

func TestExtendedEventMovesTheDeadline(t *testing.T) {
	b := newBench(t)
	b.live("s")
	data, err := structpb.NewValue(map[string]any{
		"before": "2023-11-15T22:13:20.000Z", "after": time.UnixMilli(base + 30*hour).UTC().Format("2006-01-02T15:04:05.000Z07:00"), "extensionCount": 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	e := b.entry(0, "s", policy.TypeExtended, b.now)
	e.Event.Data = data
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.now = base + 24*hour - minute
	b.send("s", "input:text")
	b.due(0)
	b.now = base + 30*hour - minute
	b.send("s", "input:text")
	b.due(1)
}

func TestOverflowEvictsTheIdleThenStopsCredits(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxTracked = 3 })
	for _, id := range []string{"a", "b", "c"} {
		b.live(id)
	}
	b.send("a", "input:text")
	b.send("d", "registry:updated")
	if b.Tracked("b") {
		t.Error("b was idle for longest and is still there")
	}
	if !b.Tracked("a") {
		t.Error("a has activity to report and was evicted")
	}
	if s := b.Stats(); s.Evicted != 1 || s.Tracked != 3 || b.Full() {
		t.Errorf("stats %+v, full %v", s, b.Full())
	}
	b.send("c", "input:text")
	if !b.Full() {
		t.Error("all three wait for the store, want full")
	}
}

func TestSweepForgetsTheUnused(t *testing.T) {
	b := newBench(t)
	b.live("unused")
	b.live("short", func(s *sessionv1.Session) { s.ExpireTime = ts(base + 1000) })
	b.live("waiting", func(s *sessionv1.Session) { s.ExpireTime = ts(base + 1000) })
	b.send("waiting", "input:text")
	b.now += 2 * minute
	if !b.Sweep(b.now, 10) {
		t.Error("sweep did not come to the end")
	}
	if b.Tracked("short") || b.Stats().Tracked != 2 {
		t.Error("a session past its deadline is still there")
	}
	b.now += 29 * minute
	for done := false; !done; {
		done = b.Sweep(b.now, 1)
	}
	if !b.Tracked("waiting") || b.Stats().Tracked != 1 {
		t.Errorf("tracked %d, want only the one with activity to report", b.Stats().Tracked)
	}
}

func TestLostShardsAreForgotten(t *testing.T) {
	b := newBench(t)
	b.Assigned([]int32{0, 1})
	b.live("idle")
	b.live("waiting")
	b.send("waiting", "input:text")
	b.send("unknown", "input:text")
	b.Assigned([]int32{1})
	if s := b.Stats(); s.Tracked != 1 || s.Outstanding != 0 {
		t.Errorf("%+v, want only the session with activity to report", s)
	}
	b.now += flush
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	if s := b.Stats(); s.Tracked != 0 {
		t.Errorf("tracked %d", s.Tracked)
	}
	b.acked("")
}

func TestSystemEventsAndLinks(t *testing.T) {
	b := newBench(t)
	b.live("s")
	e := b.entry(0, "s", "input:text", b.now)
	e.Event.Origin = sessionv1.Event_SYSTEM
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	if b.Busy() {
		t.Error("an event of an internal service counted")
	}
	for i := range 6 {
		e := b.entry(0, "s", "input:text", b.now)
		e.Event.Traceparent = fmt.Sprintf("00-%032x-%016x-01", i+1, i+1)
		b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	}
	batch := b.Due(b.now, 10, true)
	if len(batch.Links) != maxLinks || batch.Links[maxLinks-1].SpanID[7] != 6 || batch.Links[0].Flags != 1 {
		t.Errorf("links %+v, want the first three and the last", batch.Links)
	}
}

var labelInput = slices.Index(policy.Labels(), "input")
