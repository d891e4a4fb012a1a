package tracker

import (
	"fmt"
	"slices"
	"testing"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

var (
	notFound = Result{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}
	ended    = Result{Outcome: sessionv1.ExtendTTLResponse_ENDED}
	// All else is ignored in these two.
	retry    = Result{Retry: true, Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}
	rejected = Result{Rejected: true, Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}
	longer   = answer(sessionv1.ExtendTTLResponse_EXTENDED, base+30*hour, 1)
)

// apply gives Applied one result and returns what the caller may count.
func (b *bench) apply(items []Item, r Result) Result {
	results := []Result{r}
	b.Applied(items, results, b.now)
	return results[0]
}

// expectUnresolved takes the sessions to be asked for and checks which they are.
func (b *bench) expectUnresolved(want ...string) {
	b.Helper()
	if ids := b.Unresolved(b.now, 1000); !slices.Equal(ids, want) {
		b.Fatalf("asked for %v at +%d ms, want %v", ids, b.now-base, want)
	}
}

// resolveAs gives Resolve one answer, to a question asked now.
func (b *bench) resolveAs(id string, a Answer) {
	a.SessionID = id
	b.Resolve([]Answer{a}, b.now, b.now)
}

// expectEmpty checks that no session is tracked and nothing is due.
func (b *bench) expectEmpty() {
	b.Helper()
	if s := b.Stats(); s.Tracked != 0 || s.Outstanding != 0 || b.Busy() {
		b.Errorf("left: %+v", s)
	}
	if _, ok := b.NextDue(); ok {
		b.Error("a report is still due")
	}
	if _, ok := b.NextUnresolved(); ok {
		b.Error("a session is still to be asked for")
	}
}

func TestFirstNotFoundLosesNoActivity(t *testing.T) {
	b := newBench(t)
	b.live("s")
	b.send("s", "input:text")
	b.now += flush
	first := b.due(1)
	b.send("s", "input:text") // while in flight
	if r := b.apply(first, notFound); !r.Retry {
		t.Error("a first NOT_FOUND is counted as final")
	}
	b.now += recheck - 1
	last := b.send("s", "chat:send") // during the pause
	if len(b.Due(b.now, 10, true).Items) != 0 {
		t.Fatal("reported again before the pause is over")
	}
	b.acked("")
	if at, ok := b.NextDue(); !ok || at != b.now+1 {
		t.Errorf("next due in %d ms, %v, want at the end of the pause", at-b.now, ok)
	}
	b.now++
	again := b.due(1)
	if again[0].Time != b.now-1 || fmt.Sprint(again[0].Counts) != "map[chat:1 input:2]" {
		t.Errorf("reported again %+v, want all activity", again[0])
	}
	if r := b.apply(again, longer); r.Retry {
		t.Error("EXTENDED is counted as a retry")
	}
	b.acked(last.GetCursor())
	if !b.Tracked("s") || b.Busy() {
		t.Errorf("tracked %v, busy %v", b.Tracked("s"), b.Busy())
	}
}

func TestSecondNotFoundIsFinal(t *testing.T) {
	b := newBench(t)
	b.live("s")
	b.send("s", "input:text")
	b.now += flush
	b.apply(b.due(1), notFound)
	b.now += recheck
	second := b.due(1)
	last := b.send("s", "input:text")
	b.acked("")
	if r := b.apply(second, notFound); r.Retry {
		t.Error("the second NOT_FOUND is counted as a retry")
	}
	b.acked(last.GetCursor())
	b.expectEmpty()
}

func TestEndedIsFinalAtOnce(t *testing.T) {
	for name, before := range map[string][]Result{"first": nil, "after NOT_FOUND": {notFound}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.live("s")
			e := b.send("s", "input:text")
			b.now += flush
			for _, r := range before {
				b.apply(b.due(1), r)
				b.now += recheck
			}
			b.apply(b.due(1), ended)
			b.acked(e.GetCursor())
			b.expectEmpty()
		})
	}
}

// Only two in a row are final: any answer between them, and a store that cannot
// answer, makes the next NOT_FOUND a first one.
func TestOtherAnswersResetNotFound(t *testing.T) {
	for name, between := range map[string]Result{
		"retry": retry, "rejected": rejected, "not needed": notNeeded,
		"too late": answer(sessionv1.ExtendTTLResponse_TOO_LATE, base+24*hour, 0),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.live("s")
			var last *sessionv1.FeedEntry
			step := func(r Result) Result {
				t.Helper()
				last = b.send("s", "input:text")
				b.now += flush
				return b.apply(b.due(1), r)
			}
			step(notFound)
			step(between)
			if r := step(notFound); !r.Retry || !b.Tracked("s") {
				t.Fatalf("tracked %v, result %+v, want another look", b.Tracked("s"), r)
			}
			if step(notFound); b.Tracked("s") {
				t.Error("still tracked after two in a row")
			}
			b.acked(last.GetCursor())
			b.expectEmpty()
		})
	}
}

// What is late stays behind when a report is split; the second look is of the
// session, whichever part is reported.
func TestNotFoundOfASplitReport(t *testing.T) {
	split := func(t *testing.T) (*bench, *sessionv1.FeedEntry) {
		t.Helper()
		b := newBench(t)
		b.live("s")
		deadline := base + 24*hour
		b.now = deadline - minute
		b.send("s", "input:text")
		it := b.due(1)
		b.now = deadline + 1000
		last := b.send("s", "input:text")
		b.apply(it, notFound)
		b.now += recheck
		return b, last
	}
	t.Run("twice", func(t *testing.T) {
		b, last := split(t)
		second := b.due(1)
		if second[0].Time != base+24*hour-minute {
			t.Fatalf("reported %+v, want the early one", second[0])
		}
		b.apply(second, notFound)
		b.acked(last.GetCursor())
		b.expectEmpty()
	})
	t.Run("once", func(t *testing.T) {
		b, last := split(t)
		b.apply(b.due(1), longer)
		b.acked("")
		b.now += flush
		if r := b.apply(b.due(1), notFound); !r.Retry {
			t.Error("NOT_FOUND of the late part is final, though the early one was found")
		}
		b.now += recheck
		b.apply(b.due(1), notNeeded)
		b.acked(last.GetCursor())
	})
}

func TestGoneThenFoundReportsWhatWasHeld(t *testing.T) {
	b := newBench(t)
	b.send("s", "input:text")
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Gone: true})
	b.now += recheck - 1
	last := b.send("s", "chat:send")
	b.expectUnresolved()
	b.acked("")
	if at, ok := b.NextUnresolved(); !ok || at != b.now+1 {
		t.Errorf("next in %d ms, %v, want at the end of the pause", at-b.now, ok)
	}
	b.now++
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Session: aSession("s", base)})
	b.acked("")
	b.now += flush
	it := b.due(1)
	if it[0].Time != last.GetEvent().GetTime().AsTime().UnixMilli() || fmt.Sprint(it[0].Counts) != "map[chat:1 input:1]" {
		t.Errorf("reported %+v, want both events", it[0])
	}
	b.apply(it, notNeeded)
	b.acked(last.GetCursor())
}

func TestGoneTwiceIsFinal(t *testing.T) {
	b := newBench(t)
	b.send("s", "input:text")
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Gone: true})
	b.now += recheck
	b.expectUnresolved("s")
	last := b.send("s", "input:text")
	b.acked("")
	b.resolveAs("s", Answer{Gone: true})
	b.acked(last.GetCursor())
	b.expectEmpty()
}

func TestRefusedIDIsFinalAtOnce(t *testing.T) {
	b := newBench(t)
	e := b.send("s", "input:text")
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Rejected: true})
	b.acked(e.GetCursor())
	b.expectEmpty()
}

func TestRetryResetsGone(t *testing.T) {
	b := newBench(t)
	b.send("s", "input:text")
	for _, a := range []Answer{{Gone: true}, {Retry: true}, {Gone: true}} {
		b.expectUnresolved("s")
		b.resolveAs("s", a)
		b.now += recheck
	}
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Session: aSession("s", base)})
	b.now += flush
	b.due(1)
}

// A session that was found by a read may still be reported as NOT_FOUND by a
// replica that is behind: the count starts anew.
func TestReadDoesNotCountForReports(t *testing.T) {
	b := newBench(t)
	b.send("s", "input:text")
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Gone: true})
	b.now += recheck
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Session: aSession("s", base)})
	b.now += flush
	if r := b.apply(b.due(1), notFound); !r.Retry || !b.Tracked("s") {
		t.Errorf("tracked %v, result %+v", b.Tracked("s"), r)
	}
}

// The stream breaks while a question is out, and the session is asked for
// anew: both answers may be of one moment, however late the second comes.
func TestOlderQuestionIsNoSecondLook(t *testing.T) {
	b := newBench(t)
	e := b.send("s", "input:text")
	b.expectUnresolved("s")
	b.Reset()
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.expectUnresolved("s")
	asked := b.now
	b.resolveAs("s", Answer{Gone: true}) // the first question's
	b.now += recheck
	b.expectUnresolved("s")
	b.Resolve([]Answer{{SessionID: "s", Gone: true}}, asked, b.now)
	b.acked("")
	b.now += recheck
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Gone: true})
	b.acked(e.GetCursor())
	b.expectEmpty()
}

// The feed's entry that a session is over is final, and comes after all of the
// session's activity: nothing is left to look at.
func TestSessionThatIsOverIsNotLookedAtAgain(t *testing.T) {
	reported := func(b *bench) []Item {
		b.live("s")
		b.send("s", "input:text")
		b.now += flush
		return b.due(1)
	}
	for name, wait := range map[string]func(b *bench) (late func()){
		"report waits": func(b *bench) func() {
			b.apply(reported(b), notFound)
			return func() {}
		},
		"report in flight": func(b *bench) func() {
			it := reported(b)
			return func() {
				if r := b.apply(it, notFound); r.Retry {
					b.Error("counted as a retry, though nothing is retried")
				}
			}
		},
		"second report in flight": func(b *bench) func() {
			b.apply(reported(b), notFound)
			b.now += recheck
			it := b.due(1)
			return func() { b.apply(it, notFound) }
		},
		"question waits": func(b *bench) func() {
			b.send("s", "input:text")
			b.expectUnresolved("s")
			b.resolveAs("s", Answer{Gone: true})
			return func() {}
		},
		"question out": func(b *bench) func() {
			b.send("s", "input:text")
			b.expectUnresolved("s")
			return func() { b.resolveAs("s", Answer{Gone: true}) }
		},
		"second question out": func(b *bench) func() {
			b.send("s", "input:text")
			b.expectUnresolved("s")
			b.resolveAs("s", Answer{Gone: true})
			b.now += recheck
			b.expectUnresolved("s")
			return func() { b.resolveAs("s", Answer{Gone: true}) }
		},
	} {
		for _, typ := range []string{policy.TypeDeleted, policy.TypeEnded, policy.TypeExpired} {
			t.Run(name+"/"+typ, func(t *testing.T) {
				b := newBench(t)
				late := wait(b)
				b.acked("")
				last := b.send("s", typ)
				b.acked(last.GetCursor())
				b.expectEmpty()
				late()
				b.expectEmpty()
			})
		}
	}
}

// A session that waits for its second look holds back its own entries and, as
// a shard is acknowledged in order, those after them; nobody else's reports.
func TestSecondLookHoldsBackOnlyItsSession(t *testing.T) {
	for name, first := range map[string]func(b *bench){
		"report": func(b *bench) {
			b.live("s")
			b.send("s", "input:text")
			b.now += flush
			b.apply(b.due(1), notFound)
		},
		"question": func(b *bench) {
			b.send("s", "input:text")
			b.expectUnresolved("s")
			b.resolveAs("s", Answer{Gone: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			first(b)
			b.acked("")

			after := b.send("other", "input:text")
			elsewhere := b.entry(1, "elsewhere", "input:text", b.now)
			b.Observe([]*sessionv1.FeedEntry{elsewhere}, b.now)
			b.expectUnresolved("other", "elsewhere")
			for _, id := range []string{"other", "elsewhere"} {
				b.resolveAs(id, Answer{Session: aSession(id, base)})
			}
			items := b.Due(b.now, 10, true).Items
			if len(items) != 2 {
				t.Fatalf("%d reports due, want those of both others", len(items))
			}
			b.Applied(items, answersTo(items), b.now)
			if acks := b.Acks(nil); len(acks) != 1 || acks[0] != (Ack{Shard: 1, Cursor: elsewhere.GetCursor()}) {
				t.Fatalf("acknowledged %v, want only the other shard", acks)
			}
			if n := b.Outstanding(); n != 2 {
				t.Errorf("%d outstanding, want 2", n)
			}

			b.now += recheck
			if name == "question" {
				b.expectUnresolved("s")
				b.resolveAs("s", Answer{Gone: true})
			} else {
				b.apply(b.due(1), notFound)
			}
			b.acked(after.GetCursor())
		})
	}
}

// A failed report and one that was not found have pauses of their own.
func TestPausesDoNotBlockEachOther(t *testing.T) {
	b := newBench(t)
	for _, id := range []string{"a", "b"} {
		b.live(id)
		b.send(id, "input:text")
	}
	b.send("c", "input:text")
	b.send("d", "input:text")
	b.expectUnresolved("c", "d")
	b.now += flush
	b.Applied(b.due(2), []Result{notFound, retry}, b.now)
	b.Resolve([]Answer{{SessionID: "c", Gone: true}, {SessionID: "d", Retry: true}}, b.now, b.now)
	if at, _ := b.NextDue(); at != b.now+1000 {
		t.Errorf("next due in %d ms, want the failed one", at-b.now)
	}
	if at, _ := b.NextUnresolved(); at != b.now+1000 {
		t.Errorf("next question in %d ms, want the failed one", at-b.now)
	}
	b.now += 1000
	if it := b.due(1); it[0].SessionID != "b" {
		t.Errorf("reported %+v", it)
	}
	b.expectUnresolved("d")
	b.now += recheck - 1000
	if it := b.due(1); it[0].SessionID != "a" {
		t.Errorf("reported %+v", it)
	}
	b.expectUnresolved("c")
}

// What was dropped while it waited for its second look comes again, and is
// looked at twice again.
func TestBrokenStreamStartsTheLooksAnew(t *testing.T) {
	b := newBench(t)
	e := b.send("s", "input:text")
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Gone: true})
	b.Reset()
	b.expectEmpty()
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Gone: true})
	b.acked("")
	b.now += recheck
	b.expectUnresolved("s")
	b.resolveAs("s", Answer{Session: aSession("s", base)})
	b.now += flush
	b.apply(b.due(1), notNeeded)
	b.acked(e.GetCursor())
}

func TestLostShardEndsTheSecondLook(t *testing.T) {
	b := newBench(t)
	b.Assigned([]int32{0, 1})
	b.live("reported")
	b.send("reported", "input:text")
	b.now += flush
	b.apply(b.due(1), notFound)
	b.send("unknown", "input:text")
	b.expectUnresolved("unknown")
	b.resolveAs("unknown", Answer{Gone: true})
	b.Assigned([]int32{1})
	b.now += recheck
	b.expectUnresolved()
	b.apply(b.due(1), notNeeded)
	b.acked("")
	b.expectEmpty()
}
