package tracker

import (
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

// Config of a Tracker; durations are at least a millisecond.
type Config struct {
	// Rules are those of sessions whose policy has none.
	Rules *policy.Rules
	// Flush is how long activity waits for more to be reported with it.
	Flush time.Duration
	// RetryDelay is the pause before a session is asked about again that the
	// store could not answer for.
	RetryDelay time.Duration
	// RecheckDelay is the pause after a first NOT_FOUND before the session is
	// asked about again; longer than Redis Cluster takes to move a key.
	RecheckDelay time.Duration
	// MaxTracked bounds the sessions; more are held only while they all wait
	// for the store.
	MaxTracked int
	// ForgetAfter is how long a session with nothing to report is kept.
	ForgetAfter time.Duration
}

// pastDeadline is how long a session is kept past its deadline: late activity
// may still revive it until it is swept.
const pastDeadline = int64(time.Minute / time.Millisecond)

// Tracker is safe for concurrent use.
type Tracker struct {
	flush, retry, recheck, forgetAfter int64
	maxTracked                         int
	interner                           *policy.Interner

	mu       sync.Mutex
	sessions map[string]*session
	shards   map[int32]*shardQueue
	seen     map[int32]place
	// dropped are entries that the latest Reset dropped before they were judged.
	dropped  map[shardPlace]struct{}
	assigned map[int32]bool

	outstanding int

	idle, unresolved, askAgain, uncertain sessionList
	ready, waiting, retries, rechecks     deliveryList
	timed                                 dueHeap
	sweepAt                               *session
	free                                  []*delivery
	stats                                 Stats
}

// New returns an empty tracker.
func New(cfg Config) *Tracker {
	return &Tracker{
		flush: cfg.Flush.Milliseconds(), retry: cfg.RetryDelay.Milliseconds(), recheck: cfg.RecheckDelay.Milliseconds(),
		forgetAfter: cfg.ForgetAfter.Milliseconds(), maxTracked: cfg.MaxTracked,
		interner:   policy.NewInterner(cfg.Rules),
		sessions:   map[string]*session{},
		shards:     map[int32]*shardQueue{},
		seen:       map[int32]place{},
		assigned:   map[int32]bool{},
		idle:       sessionList{name: inIdle},
		unresolved: sessionList{name: inUnresolved},
		askAgain:   sessionList{name: inAskAgain},
		uncertain:  sessionList{name: inUncertain},
		ready:      deliveryList{name: inReady},
		waiting:    deliveryList{name: inWaiting},
		retries:    deliveryList{name: inRetry},
		rechecks:   deliveryList{name: inRecheck},
		stats:      Stats{Counted: make([]uint64, len(policy.Labels()))},
	}
}

// Observe takes entries in the order in which the feed delivered them.
func (t *Tracker) Observe(entries []*sessionv1.FeedEntry, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range entries {
		t.observe(e, now)
	}
}

func (t *Tracker) observe(e *sessionv1.FeedEntry, now int64) {
	ev := e.GetEvent()
	at := sighting{event: ev, time: millis(ev.GetTime()), appended: millis(e.GetAppendTime())}
	if at.appended == 0 {
		at.appended = now
	}
	if at.time == 0 {
		at.time = at.appended
	}
	at.place, at.again = t.seenBefore(e)

	s := t.sessions[e.GetSessionId()]
	var seq uint32
	wait := false
	switch kind := lifecycle(ev.GetType()); {
	case kind != notLifecycle:
		t.stats.Lifecycle++
		t.lifecycle(s, e, kind)
	case s == nil:
		s = t.add(e)
		fallthrough
	case s.terms == nil:
		s.seq++
		s.pending.held = append(s.pending.held, heldEvent{sighting: at, seq: s.seq})
		s.touched = now
		seq, wait = s.seq, true
	default:
		seq, wait = t.count(s, at, 0, now)
	}

	q := t.shards[e.GetShard()]
	if q == nil {
		q = &shardQueue{}
		t.shards[e.GetShard()] = q
	}
	switch {
	case wait:
		q.push(entry{cursor: e.GetCursor(), s: s, seq: seq, appended: at.appended})
		t.outstanding++
	case q.len() == 0:
		q.ack, q.dirty = e.GetCursor(), true
	default:
		q.push(entry{cursor: e.GetCursor(), appended: at.appended})
		t.outstanding++
	}
}

// seenBefore says whether an entry was observed before: its shard's entries
// come in order, so whatever is not after the last one comes again. What was
// dropped before it was judged is as good as never seen.
func (t *Tracker) seenBefore(e *sessionv1.FeedEntry) (p place, again bool) {
	p, ok := parsePlace(e.GetCursor())
	if !ok {
		return p, false
	}
	if last := t.seen[e.GetShard()]; !p.after(last) {
		t.stats.Redelivered++
		at := shardPlace{e.GetShard(), p}
		_, dropped := t.dropped[at]
		delete(t.dropped, at)
		return p, !dropped
	}
	t.seen[e.GetShard()] = p
	return p, false
}

// sighting is an event with what the feed says about it.
type sighting struct {
	event    *sessionv1.Event
	time     int64
	appended int64
	place    place
	again    bool
}

// shardPlace is an entry's place in the feed.
type shardPlace struct {
	shard int32
	place place
}

// heldEvent waits for its session to be resolved.
type heldEvent struct {
	sighting
	seq uint32
}

// count judges an event of a resolved session. It returns the number of the
// entry and whether it has to wait for an answer; seq is its number where it
// has one already, else 0.
func (t *Tracker) count(s *session, at sighting, seq uint32, now int64) (uint32, bool) {
	s.touched = now
	st := s.state()
	d := policy.Decide(&st, policy.Event{Type: at.event.GetType(), Origin: at.event.GetOrigin(), Time: at.time}, now, t.flush)
	if d.Verdict != policy.Counts {
		if !at.again {
			t.stats.Ignored++
		}
		return 0, false
	}
	// What comes again and is not later than an activity that the store has
	// judged has nothing left to tell.
	if at.again && at.time <= s.delivered {
		return 0, false
	}
	if seq == 0 {
		s.seq++
		if s.seq == 0 { // 0 stands for no number
			s.seq++
		}
		seq = s.seq
	}
	p := s.pending
	if p == nil {
		p = t.take(s, now)
		s.pending = p
		if s.in == inIdle {
			t.unlink(s)
		}
	}
	p.merge(activity{time: at.time, eventID: at.event.GetId(), kind: d.Kind}, s.deadline)
	p.coalesced++
	p.to = seq
	if !at.again {
		t.stats.Counted[s.terms.Rules.Label(d.Kind)]++
		p.tally(d.Kind, 1)
	}
	if tp := at.event.GetTraceparent(); tp != "" {
		p.link(parseLink(tp))
	}
	if s.flight == nil {
		t.schedule(p, d.Due, now)
	}
	return seq, true
}

type lifecycleKind uint8

const (
	notLifecycle lifecycleKind = iota
	over
	extended
	otherLifecycle
)

func lifecycle(eventType string) lifecycleKind {
	const prefix = "session:"
	if len(eventType) < len(prefix) || eventType[:len(prefix)] != prefix {
		return notLifecycle
	}
	switch eventType {
	case policy.TypeSubscribe:
		return notLifecycle
	case policy.TypeEnded, policy.TypeExpired, policy.TypeDeleted:
		return over
	case policy.TypeExtended:
		return extended
	default:
		return otherLifecycle
	}
}

func (t *Tracker) lifecycle(s *session, e *sessionv1.FeedEntry, kind lifecycleKind) {
	if s == nil {
		return
	}
	switch kind {
	case over:
		t.forget(s)
	case extended:
		if s.terms != nil {
			s.refreshFrom(e.GetEvent().GetData())
		}
	case notLifecycle, otherLifecycle:
	}
}

// refreshFrom learns from the numbers of a session:extended event. They may be
// older than what is known: deadlines and counts only ever grow.
func (s *session) refreshFrom(data *structpb.Value) {
	f := data.GetStructValue().GetFields()
	if after := parseTime(f["after"].GetStringValue()); after > s.deadline {
		s.deadline = after
	}
	if cause := parseTime(f["activityTime"].GetStringValue()); cause > s.lastCause {
		s.lastCause = cause
	}
	if n := f["extensionCount"]; n != nil && n.GetNumberValue() >= float64(s.terms.Max) {
		s.capped = true
	}
}

func parseTime(s string) int64 {
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0
	}
	return at.UnixMilli()
}

func millis(ts *timestamppb.Timestamp) int64 {
	return ts.GetSeconds()*1000 + int64(ts.GetNanos())/1e6
}
