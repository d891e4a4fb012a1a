package tracker

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

const (
	flush   = 15_000
	recheck = 2000
	hour    = int64(3_600_000)
	minute  = int64(60_000)
	base    = int64(1_700_000_000_000)
)

// bench is a tracker with a clock, a feed and a store of the test's own.
type bench struct {
	testing.TB
	*Tracker
	now  int64
	seqs map[int32]int64
}

func newBench(tb testing.TB, change ...func(*Config)) *bench {
	tb.Helper()
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		tb.Fatal(err)
	}
	cfg := Config{
		Rules: rules, Flush: flush * time.Millisecond, RetryDelay: time.Second, RecheckDelay: recheck * time.Millisecond,
		MaxTracked: 1000, ForgetAfter: 30 * time.Minute,
	}
	for _, c := range change {
		c(&cfg)
	}
	return &bench{TB: tb, Tracker: New(cfg), now: base, seqs: map[int32]int64{}}
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
	b.Resolve([]Answer{{SessionID: id, Session: s}}, b.now, b.now)
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
	calls, counted := 0, int64(0)
	var lastItem, lastSent int64
	step := func() {
		for _, it := range b.Due(b.now, 1000, false).Items {
			calls++
			lastItem = it.Time
			counted += it.Counts["input"]
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
	if counted != 4000 {
		t.Errorf("the reports stand for %d activities, want 4000", counted)
	}
	if v, ok := b.Waiting("s"); ok {
		t.Errorf("waiting %+v", v)
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
	if again[0].Time != last.GetEvent().GetTime().AsTime().UnixMilli() || again[0].Kind != "chat" || fmt.Sprint(again[0].Counts) != "map[chat:1 input:1]" {
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
	if early[0].Time != deadline-1000 || early[0].Counts["input"] != 2 {
		t.Fatalf("reported %+v, %d ms from the deadline, want the two before it", early[0], early[0].Time-deadline)
	}
	b.Applied(early, []Result{answer(sessionv1.ExtendTTLResponse_EXTENDED, deadline+6*hour, 1)}, b.now)
	b.acked("")
	b.now += flush
	second := b.due(1)
	if second[0].Time != deadline+1000 || second[0].Counts != nil {
		t.Fatalf("then reported %+v", second[0])
	}
	b.Applied(second, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, deadline+6*hour, 1)}, b.now)
	b.acked(late.GetCursor())
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
	if again := b.due(1); again[0].Time != it[0].Time || again[0].Kind != "input" || fmt.Sprint(again[0].Counts) != "map[chat:1 input:1]" {
		t.Errorf("retried %+v, want the later activity", again)
	}
}

func TestWaitingTellsWhatTheStoreDoesNotKnow(t *testing.T) {
	b := newBench(t)
	b.live("s")
	b.send("s", "input:text")
	b.now += flush
	it := b.due(1)
	last := b.send("s", "chat:send")
	v, ok := b.Waiting("s")
	if !ok || v.Kind != "chat" || v.Last != last.GetEvent().GetTime().AsTime().UnixMilli() || fmt.Sprint(v.Counts) != "map[chat:1 input:1]" {
		t.Errorf("waiting %+v", v)
	}
	b.Applied(it, []Result{answer(sessionv1.ExtendTTLResponse_NOT_NEEDED, base+24*hour, 0)}, b.now)
	if v, ok := b.Waiting("s"); !ok || fmt.Sprint(v.Counts) != "map[chat:1]" {
		t.Errorf("then %+v", v)
	}
	if _, ok := b.Waiting("nobody"); ok {
		t.Error("something waits for a session that is not tracked")
	}
}

// More kinds than a delivery counts inline are counted all the same.
func TestCountsEveryKind(t *testing.T) {
	b := newBench(t)
	b.live("s", func(s *sessionv1.Session) {
		s.TtlPolicy.ActivityRules = nil
		for n := range 20 {
			s.TtlPolicy.ActivityRules = append(s.TtlPolicy.ActivityRules, &sessionv1.ActivityRule{Pattern: fmt.Sprintf("a:%d", n), Kind: fmt.Sprint("k", n)})
		}
	})
	for range 2 {
		for n := range 20 {
			b.send("s", fmt.Sprintf("a:%d", n))
		}
	}
	b.now += flush
	it := b.due(1)
	if len(it[0].Counts) != 20 {
		t.Fatalf("counts %v", it[0].Counts)
	}
	for kind, n := range it[0].Counts {
		if n != 2 {
			t.Errorf("%s: %d, want 2", kind, n)
		}
	}
}
