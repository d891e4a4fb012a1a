package tracker

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/explain"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

const (
	flush  = 15_000
	hour   = int64(3_600_000)
	minute = int64(60_000)
	base   = int64(1_700_000_000_000)
)

// bench is a tracker with a clock, a feed and a store of the test's own.
type bench struct {
	testing.TB
	*Tracker
	now  int64
	seqs map[int32]int64
}

func newBench(t testing.TB, change ...func(*Config)) *bench {
	t.Helper()
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Rules: rules, Flush: flush * time.Millisecond, RetryDelay: time.Second, MaxTracked: 1000,
		ForgetAfter: 30 * time.Minute, Decisions: explain.NewLog(100),
	}
	for _, c := range change {
		c(&cfg)
	}
	return &bench{TB: t, Tracker: New(cfg), now: base, seqs: map[int32]int64{}}
}

func (b *bench) entry(shard int32, id, typ string, at int64) *sessionv1.FeedEntry {
	b.seqs[shard]++
	return &sessionv1.FeedEntry{
		Shard: shard, Cursor: fmt.Sprintf("%d-%d", at, b.seqs[shard]), SessionId: id,
		Event:      &sessionv1.Event{Id: fmt.Sprintf("e%d-%d", shard, b.seqs[shard]), Type: typ, Time: ts(at), Origin: sessionv1.Event_USER},
		AppendTime: ts(at),
	}
}

// send observes one event that happens now.
func (b *bench) send(id, typ string) *sessionv1.FeedEntry {
	e := b.entry(0, id, typ, b.now)
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	return e
}

// live makes a session tracked that was created at base.
func (b *bench) live(id string, change ...func(*sessionv1.Session)) {
	b.Helper()
	b.send(id, "registry:updated")
	s := aSession(id, base)
	for _, c := range change {
		c(s)
	}
	ids := b.Unresolved(b.now, 1)
	if len(ids) != 1 || ids[0] != id {
		b.Fatalf("unresolved: %v, want %s", ids, id)
	}
	b.Resolve([]Answer{{SessionID: id, Session: s}}, b.now)
	b.Acks(nil)
}

func aSession(id string, created int64) *sessionv1.Session {
	return &sessionv1.Session{
		Id: id, CreateTime: ts(created), ExpireTime: ts(created + 24*hour), LastActivityTime: ts(created), CapTime: ts(created + 48*hour),
		TtlPolicy: &sessionv1.TTLPolicy{
			BaseTtl: durationpb.New(24 * time.Hour), Extension: durationpb.New(6 * time.Hour), MaxExtensions: proto.Int32(4),
			ExtendBelow: durationpb.New(10 * time.Minute), MinInterval: durationpb.New(time.Hour),
			Strategy: sessionv1.TTLPolicy_BELOW_THRESHOLD,
		},
	}
}

func ts(ms int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(ms)) }

func answer(o sessionv1.ExtendTTLResponse_Outcome, expire int64, count int32) Result {
	return Result{Outcome: o, Reason: o.String(), After: &sessionv1.TTL{
		ExpireTime: ts(expire), ExtensionCount: count, MaxExtensions: 4, CapTime: ts(base + 48*hour),
	}}
}

// due takes what is due and checks how much that is.
func (b *bench) due(want int) []Item {
	b.Helper()
	items := b.Due(b.now, 1000, false).Items
	if len(items) != want {
		b.Fatalf("%d items due at +%d ms, want %d: %+v", len(items), b.now-base, want, items)
	}
	return items
}

func (b *bench) acked(want string) {
	b.Helper()
	got := ""
	for _, a := range b.Acks(nil) {
		got = a.Cursor
	}
	if got != want {
		b.Fatalf("acknowledged %q, want %q", got, want)
	}
}

func TestCoalescesAHundredEventsASecond(t *testing.T) {
	b := newBench(t)
	b.live("s")
	calls := 0
	var lastItem, lastSent int64
	step := func() {
		for _, it := range b.Due(b.now, 1000, false).Items {
			calls++
			lastItem = it.Time
			b.Applied([]Item{it}, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
		}
	}
	for range 4000 { // 40 s
		b.send("s", "input:text")
		lastSent = b.now
		b.now += 10
		step()
	}
	if calls != 2 {
		t.Errorf("%d calls in 40 s, want one per 15 s: 2", calls)
	}
	b.now += flush
	step()
	if lastItem != lastSent || calls != 3 {
		t.Errorf("%d calls, the last for %d, want the last activity %d delivered by the third", calls, lastItem, lastSent)
	}
	if b.Busy() {
		t.Error("still busy")
	}
	if v, ok := b.Lookup("s"); !ok || v.Counts["input"] != 4000 || v.Kind != "input" || v.Last != lastSent {
		t.Errorf("view %+v", v)
	}
}

func TestReportsAtOnceWhenTimeIsShort(t *testing.T) {
	b := newBench(t)
	b.live("s")
	b.now = base + 24*hour - 9*minute
	b.send("s", "input:text")
	it := b.due(1)
	// While the answer is out there is no second call; then it is not needed
	// at once any more.
	b.now++
	b.send("s", "input:text")
	b.due(0)
	b.Applied(it, []Result{answer(sessionv1.ExtendTTLResponse_EXTENDED, base+30*hour, 1)}, b.now)
	b.due(0)
	if at, ok := b.NextDue(); !ok || at != b.now+flush {
		t.Errorf("next due %d, want a flush interval after %d", at, b.now)
	}
	b.now += flush
	b.due(1)
}

func TestReportsACappedSessionAtItsDeadline(t *testing.T) {
	b := newBench(t)
	b.live("s", func(s *sessionv1.Session) { s.ExtensionCount, s.ExpireTime = 4, s.CapTime })
	b.now = base + 48*hour - 5000
	e := b.send("s", "input:text")
	b.due(0)
	b.acked("")
	if at, _ := b.NextDue(); at != base+48*hour {
		t.Errorf("due %d ms from the deadline, want at it", at-base-48*hour)
	}
	b.now = base + 48*hour
	it := b.due(1)
	b.Applied(it, []Result{answer(sessionv1.ExtendTTLResponse_CAPPED, base+48*hour, 4)}, b.now)
	b.acked(e.GetCursor())
}

func TestEveryActivityIsOneCallPerFlushInterval(t *testing.T) {
	b := newBench(t)
	b.live("s", func(s *sessionv1.Session) { s.TtlPolicy.Strategy = sessionv1.TTLPolicy_EVERY_ACTIVITY })
	calls := 0
	for range 300 { // 30 s
		b.send("s", "input:text")
		for _, it := range b.Due(b.now, 10, false).Items {
			calls++
			b.Applied([]Item{it}, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 1)}, b.now)
		}
		b.now += 100
	}
	if calls != 2 {
		t.Errorf("%d calls in 30 s, want the first and one per 15 s", calls)
	}
}

func TestOncePerIntervalAsksWhenItIsOver(t *testing.T) {
	b := newBench(t)
	b.live("s", func(s *sessionv1.Session) { s.TtlPolicy.Strategy = sessionv1.TTLPolicy_ONCE_PER_INTERVAL })
	b.send("s", "input:text")
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_EXTENDED, base+30*hour, 1)}, b.now)
	b.now += hour - 1
	b.send("s", "input:text")
	b.due(0)
	b.now++
	b.send("s", "input:text")
	b.due(1)
}

func TestDeclinedWhatLookedPossibleIsNotAskedAtOnceAgain(t *testing.T) {
	b := newBench(t)
	b.live("s", func(s *sessionv1.Session) { s.TtlPolicy.Strategy = sessionv1.TTLPolicy_ONCE_PER_INTERVAL })
	b.send("s", "input:text")
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_TOO_SOON, base+24*hour, 1)}, b.now)
	b.now += 10
	b.send("s", "input:text")
	b.due(0)
}

func TestAcknowledgesUpToTheFirstUnanswered(t *testing.T) {
	b := newBench(t)
	b.live("a")
	b.live("b")
	first := b.send("a", "file:changed")
	b.acked(first.GetCursor())
	b.send("a", "input:text")
	b.send("b", "input:text")
	last := b.send("b", "registry:updated")
	b.acked("")
	b.now += flush
	items := b.due(2)
	b.Applied(items[1:], []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	b.acked("")
	b.Applied(items[:1], []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	b.acked(last.GetCursor())
	b.acked("")
	if n := b.Outstanding(); n != 0 {
		t.Errorf("%d outstanding", n)
	}
}

func TestActivityWhileInFlightWaitsForTheNextAnswer(t *testing.T) {
	b := newBench(t)
	b.live("s")
	one := b.send("s", "input:text")
	b.now += flush
	it := b.due(1)
	two := b.send("s", "input:text")
	b.Applied(it, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	b.acked(one.GetCursor())
	b.now += flush
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	b.acked(two.GetCursor())
}

func TestFailedReportIsRetriedWithWhatCameMeanwhile(t *testing.T) {
	b := newBench(t)
	b.live("s")
	b.send("s", "input:text")
	b.now += flush
	it := b.due(1)
	last := b.send("s", "chat:send")
	b.Applied(it, []Result{{Retry: true}}, b.now)
	b.send("s", "registry:updated")
	b.due(0)
	if len(b.Due(b.now, 10, true).Items) != 0 {
		t.Error("flushing everything skipped the pause of a failed report")
	}
	b.now += 1000
	again := b.due(1)
	if again[0].Time != last.GetEvent().GetTime().AsTime().UnixMilli() || again[0].Kind != "chat" || again[0].Coalesced != 2 {
		t.Errorf("retried %+v, want the later activity, too", again[0])
	}
	b.acked("")
	b.Applied(again, nil, b.now) // no answer at all
	b.now += 1000
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	if n := len(b.Acks(nil)); n != 1 || b.Busy() {
		t.Errorf("%d acks, busy %v", n, b.Busy())
	}
}

// An activity before the deadline must be judged by itself: reported only as
// the later one, it would be too late.
func TestActivityAcrossTheDeadlineIsReportedInTwo(t *testing.T) {
	b := newBench(t)
	b.live("s")
	deadline := base + 24*hour
	b.now = deadline - minute
	b.send("s", "input:text")
	it := b.due(1)
	b.now = deadline - 1000
	b.send("s", "input:text")
	b.now = deadline + 1000
	late := b.send("s", "input:text")
	b.Applied(it, []Result{{Retry: true}}, b.now)
	b.now += 1000
	early := b.due(1)
	if early[0].Time != deadline-1000 {
		t.Fatalf("reported %d ms from the deadline, want the last one before it", early[0].Time-deadline)
	}
	b.Applied(early, []Result{answer(sessionv1.ExtendTTLResponse_EXTENDED, deadline+6*hour, 1)}, b.now)
	b.acked("")
	b.now += flush
	second := b.due(1)
	if second[0].Time != deadline+1000 {
		t.Fatalf("then reported %+v", second[0])
	}
	b.Applied(second, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, deadline+6*hour, 1)}, b.now)
	b.acked(late.GetCursor())
}

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

func TestForgetsWhatTheStoreDoesNotKnow(t *testing.T) {
	b := newBench(t)
	b.send("gone", "input:text")
	b.send("over", "input:text")
	later := b.send("later", "input:text")
	ids := b.Unresolved(b.now, 10)
	if len(ids) != 3 || len(b.Unresolved(b.now, 10)) != 0 {
		t.Fatalf("asked for %v", ids)
	}
	ended := aSession("over", base)
	ended.EndTime = ts(base)
	b.Resolve([]Answer{{SessionID: "gone", Gone: true}, {SessionID: "over", Session: ended}, {SessionID: "later", Retry: true}}, b.now)
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
	b.Resolve([]Answer{{SessionID: "later", Session: aSession("later", base)}}, b.now)
	b.acked("" + fmt.Sprintf("%d-%d", base, 2))
	b.now += flush
	b.Applied(b.due(1), []Result{{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}}, b.now)
	b.acked(later.GetCursor())
	if s := b.Stats(); s.Tracked != 0 {
		t.Errorf("tracked %d after NOT_FOUND", s.Tracked)
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
	v, _ := b.Lookup("s")
	if s := b.Stats(); v.Counts["input"] != 1 || s.Redelivered != 1 {
		t.Errorf("counts %v, %d redelivered", v.Counts, s.Redelivered)
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
	if _, ok := b.Lookup("b"); ok {
		t.Error("b was idle for longest and is still there")
	}
	if _, ok := b.Lookup("a"); !ok {
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
	if _, ok := b.Lookup("short"); ok || b.Stats().Tracked != 2 {
		t.Error("a session past its deadline is still there")
	}
	b.now += 29 * minute
	for !b.Sweep(b.now, 1) {
	}
	if _, ok := b.Lookup("waiting"); !ok || b.Stats().Tracked != 1 {
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
	reasons := b.decisions.Last("s")
	if len(reasons) == 0 || reasons[0].Reason != "not asked: registry:updated is automated by the activity rules" {
		t.Errorf("decisions %+v", reasons)
	}
}

// What came out of order after a late activity was not judged by that.
func TestEarlierActivityAfterALateOneIsReported(t *testing.T) {
	b := newBench(t)
	b.live("s")
	deadline := base + 24*hour
	b.now = deadline + 10
	b.send("s", "input:text")
	b.Applied(b.due(1), []Result{answer(sessionv1.ExtendTTLResponse_TOO_LATE, deadline, 0)}, b.now)
	e := b.entry(0, "s", "input:text", b.now)
	e.Event.Time = ts(deadline - 10)
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	if it := b.due(1); it[0].Time != deadline-10 {
		t.Errorf("reported %+v", it)
	}
}

func TestOlderActivityMeanwhileDoesNotReplaceAFailedReport(t *testing.T) {
	b := newBench(t)
	b.live("s")
	b.send("s", "input:text")
	b.now += flush
	it := b.due(1)
	e := b.entry(0, "s", "chat:send", b.now)
	e.Event.Time = ts(base - 1000)
	b.Observe([]*sessionv1.FeedEntry{e}, b.now)
	b.Applied(it, []Result{{Retry: true}}, b.now)
	b.now += 1000
	if again := b.due(1); again[0].Time != it[0].Time || again[0].Kind != "input" || again[0].Coalesced != 2 {
		t.Errorf("retried %+v, want the later activity", again)
	}
}
