package tracker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

// feedModel is a feed and a store as the contract has them: entries that are
// not acknowledged come again after a break, in order.
type feedModel struct {
	entries []*sessionv1.FeedEntry
	counts  []bool // does the entry count as activity of a live session
	// deadlines of the entries' sessions when they were first delivered.
	deadlines []int64
	acked     int
	next      int
}

// model runs a tracker against feeds, a store and their failures.
type model struct {
	t         *rapid.T
	tr        *Tracker
	now       int64
	feeds     []*feedModel
	assigned  []bool
	deadlines map[string]int64
	over      map[string]bool
	deleted   map[string]bool
	// moving is when a session's key began to move to another node. For less
	// than the recheck delay, a replica can report a live session as not found.
	moving    map[string]int64
	delivered map[string]int64 // the latest activity that the store has judged
	accepted  map[string]int64 // and the latest that was not too late
	reported  uint64           // activities that the store was told of
	flights   [][]Item
	asking    []question
}

// question is an open BatchGetSessions call.
type question struct {
	ids []string
	at  int64
	// gone are the sessions that the store has missed already.
	gone map[string]bool
}

const modelShards, modelSessions, modelRecheck = 2, 5, 30

func newModel(t *rapid.T) *model {
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	m := &model{
		t: t, now: base,
		tr: New(Config{
			Rules: rules, Flush: 100 * time.Millisecond, RetryDelay: 20 * time.Millisecond, ForgetAfter: time.Second,
			RecheckDelay: modelRecheck * time.Millisecond,
			MaxTracked:   rapid.IntRange(1, modelSessions).Draw(t, "maxTracked"),
		}),
		deadlines: map[string]int64{}, over: map[string]bool{}, deleted: map[string]bool{}, moving: map[string]int64{},
		delivered: map[string]int64{}, accepted: map[string]int64{}, assigned: make([]bool, modelShards),
	}
	for n := range modelSessions {
		m.deadlines[fmt.Sprint("s", n)] = base + int64(500*(n+1))
	}
	for n := range modelShards {
		m.feeds = append(m.feeds, &feedModel{})
		m.assigned[n] = true
	}
	m.tr.Assigned([]int32{0, 1})
	return m
}

func (m *model) append(t *rapid.T) {
	n := rapid.IntRange(0, modelSessions-1).Draw(t, "session")
	id, shard := fmt.Sprint("s", n), n%modelShards
	f := m.feeds[shard]
	// rapid prefers what comes first, and a session that is over shows little.
	typ := rapid.SampledFrom([]string{
		"input:text", "input:text", "chat:send", "input:text", "input:text", "chat:send", "registry:updated", "input:text",
		"input:text", "chat:send", "input:text", "input:text", "chat:send", "session:expiring", "session:ended", "session:deleted",
	}).Draw(t, "type")
	at := m.now - int64(rapid.IntRange(0, 200).Draw(t, "age"))
	if typ == policy.TypeEnded || typ == policy.TypeDeleted {
		m.over[id] = true
		m.deleted[id] = m.deleted[id] || typ == policy.TypeDeleted
	}
	f.entries = append(f.entries, &sessionv1.FeedEntry{
		Shard: int32(shard), Cursor: fmt.Sprintf("%d-%d", base, len(f.entries)+1), SessionId: id, AppendTime: ts(m.now),
		Event: &sessionv1.Event{Id: fmt.Sprint("e", len(f.entries)), Type: typ, Time: ts(at), Origin: sessionv1.Event_USER},
	})
	f.counts = append(f.counts, typ == "input:text" || typ == "chat:send")
}

func (m *model) receive(t *rapid.T) {
	shard := rapid.IntRange(0, modelShards-1).Draw(t, "shard")
	f := m.feeds[shard]
	if !m.assigned[shard] {
		return
	}
	n := rapid.IntRange(0, len(f.entries)-f.next).Draw(t, "entries")
	m.observe(f, n)
}

func (m *model) observe(f *feedModel, n int) {
	for i := len(f.deadlines); i < f.next+n; i++ {
		f.deadlines = append(f.deadlines, m.deadlines[f.entries[i].GetSessionId()])
	}
	m.tr.Observe(f.entries[f.next:f.next+n], m.now)
	f.next += n
}

func (m *model) due(t *rapid.T) {
	b := m.tr.Due(m.now, rapid.IntRange(1, 3).Draw(t, "most"), rapid.Bool().Draw(t, "all"))
	if len(b.Items) == 0 {
		return
	}
	m.flights = append(m.flights, b.Items)
}

func (m *model) answer(t *rapid.T) {
	if len(m.flights) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.flights)-1).Draw(t, "flight")
	items := m.flights[i]
	m.flights = slices.Delete(m.flights, i, i+1)
	var results []Result
	for _, it := range items {
		switch {
		case rapid.IntRange(0, 3).Draw(t, "fails") == 3:
			results = append(results, Result{Retry: true})
		case m.reportsMissing(t, it.SessionID):
			results = append(results, Result{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND})
		default:
			results = append(results, m.extend(it))
		}
	}
	m.tr.Applied(items, results, m.now)
}

// migrate begins to move a session's key. The next move of the same one begins
// only after an answer that was not NOT_FOUND: two in a row are final.
func (m *model) migrate(t *rapid.T) {
	id := fmt.Sprint("s", rapid.IntRange(0, modelSessions-1).Draw(t, "session"))
	for _, q := range m.asking {
		if q.gone[id] {
			return
		}
	}
	if s := m.tr.sessions[id]; s != nil {
		for _, d := range []*delivery{s.pending, s.flight} {
			if d != nil && d.uncertain {
				return
			}
		}
	}
	m.moving[id] = m.now
}

// reportsMissing says whether a replica now misses a session that is there.
func (m *model) reportsMissing(t *rapid.T, id string) bool {
	began, ok := m.moving[id]
	return ok && m.now < began+modelRecheck && rapid.Bool().Draw(t, "missing")
}

// extend is the store: BELOW_THRESHOLD with 200 ms, by 300 ms.
func (m *model) extend(it Item) Result {
	id, before := it.SessionID, m.deadlines[it.SessionID]
	if m.deleted[id] {
		return Result{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}
	}
	if it.Counts == nil {
		m.reported++
	}
	for _, n := range it.Counts {
		m.reported += uint64(n)
	}
	r := Result{Outcome: sessionv1.ExtendTTLResponse_NOT_NEEDED}
	switch {
	case m.over[id]:
		return Result{Outcome: sessionv1.ExtendTTLResponse_ENDED}
	case it.Time >= before:
		r.Outcome = sessionv1.ExtendTTLResponse_TOO_LATE
	case before-it.Time < 200:
		r.Outcome = sessionv1.ExtendTTLResponse_EXTENDED
		m.deadlines[id] += 300
	}
	m.delivered[id] = max(m.delivered[id], it.Time)
	if r.Outcome != sessionv1.ExtendTTLResponse_TOO_LATE {
		m.accepted[id] = max(m.accepted[id], it.Time)
	}
	r.After = &sessionv1.TTL{ExpireTime: ts(m.deadlines[id]), MaxExtensions: 1 << 20}
	return r
}

func (m *model) ask(t *rapid.T) {
	if ids := m.tr.Unresolved(m.now, rapid.IntRange(1, 3).Draw(t, "most")); len(ids) > 0 {
		// The store may look at any time between question and answer.
		q := question{ids: ids, at: m.now, gone: map[string]bool{}}
		for _, id := range ids {
			q.gone[id] = m.reportsMissing(t, id)
		}
		m.asking = append(m.asking, q)
	}
}

func (m *model) tell(t *rapid.T) {
	if len(m.asking) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.asking)-1).Draw(t, "question")
	q := m.asking[i]
	m.asking = slices.Delete(m.asking, i, i+1)
	var answers []Answer
	for _, id := range q.ids {
		switch {
		case q.gone[id] || m.reportsMissing(t, id):
			answers = append(answers, Answer{SessionID: id, Gone: true})
		case !m.over[id] && rapid.IntRange(0, 3).Draw(t, "fails") == 3:
			answers = append(answers, Answer{SessionID: id, Retry: true})
		default:
			answers = append(answers, m.read(id))
		}
	}
	m.tr.Resolve(answers, q.at, m.now)
}

// read is the store's answer for a session.
func (m *model) read(id string) Answer {
	if m.deleted[id] {
		return Answer{SessionID: id, Gone: true}
	}
	s := aSession(id, base-1000)
	s.ExpireTime = ts(m.deadlines[id])
	s.TtlPolicy.ExtendBelow.Seconds, s.TtlPolicy.ExtendBelow.Nanos = 0, 200e6
	if m.over[id] {
		s.EndTime = ts(m.now)
	}
	if at := m.accepted[id]; at > 0 {
		s.LastActivityTime = ts(at)
	}
	return Answer{SessionID: id, Session: s}
}

// acks checks the promise: no counted activity of a session that is not over
// is acknowledged before the store has judged one that is not earlier; and
// one that came before the deadline is not lost to one that came after it.
func (m *model) acks(*rapid.T) {
	for _, a := range m.tr.Acks(nil) {
		f := m.feeds[a.Shard]
		if !m.assigned[a.Shard] {
			m.t.Fatalf("acknowledges shard %d, which it does not read", a.Shard)
		}
		var n int
		if _, err := fmt.Sscanf(a.Cursor, fmt.Sprint(base, "-%d"), &n); err != nil || n > f.next {
			m.t.Fatalf("acknowledges %s, delivered were %d", a.Cursor, f.next)
		}
		for i := f.acked; i < n; i++ {
			e := f.entries[i]
			id, at := e.GetSessionId(), e.GetEvent().GetTime().AsTime().UnixMilli()
			if !f.counts[i] || m.over[id] {
				continue
			}
			if at > m.delivered[id] {
				m.t.Fatalf("acknowledges %s of %s at +%d, judged is only up to +%d", e.GetCursor(), id, at-base, m.delivered[id]-base)
			}
			if at < f.deadlines[i] && at > m.accepted[id] {
				m.t.Fatalf("acknowledges %s of %s at +%d, before the deadline at +%d, though only later ones were judged, as too late", e.GetCursor(), id, at-base, f.deadlines[i]-base)
			}
		}
		f.acked = max(f.acked, n)
	}
}

func (m *model) breaks(t *rapid.T) {
	if !rare(t) {
		return
	}
	m.tr.Reset()
	for _, f := range m.feeds {
		f.next = f.acked
	}
}

// rare is true seldom enough for reports and questions to be answered before.
func rare(t *rapid.T) bool { return rapid.IntRange(0, 5).Draw(t, "rare") == 5 }

func (m *model) moves(t *rapid.T) {
	if !rare(t) {
		return
	}
	var shards []int32
	for n := range m.assigned {
		m.assigned[n] = rapid.IntRange(0, 3).Draw(t, "assigned") < 3
		if m.assigned[n] {
			shards = append(shards, int32(n))
		} else {
			// Whoever has the shard now starts at what is acknowledged; and so
			// does this one when it comes back.
			m.feeds[n].next = m.feeds[n].acked
		}
	}
	m.tr.Assigned(shards)
}

// settle lets everything succeed until nothing is left to do.
func (m *model) settle() {
	m.assigned = []bool{true, true}
	m.tr.Assigned([]int32{0, 1})
	for range 200 {
		for _, f := range m.feeds {
			m.observe(f, len(f.entries)-f.next)
		}
		if ids := m.tr.Unresolved(m.now, 100); len(ids) > 0 {
			m.asking = append(m.asking, question{ids: ids, at: m.now})
		}
		for _, q := range m.asking {
			for _, id := range q.ids {
				m.tr.Resolve([]Answer{m.read(id)}, q.at, m.now)
			}
		}
		m.asking = nil
		if b := m.tr.Due(m.now, 100, false); len(b.Items) > 0 {
			m.flights = append(m.flights, b.Items)
		}
		for _, items := range m.flights {
			var results []Result
			for _, it := range items {
				results = append(results, m.extend(it))
			}
			m.tr.Applied(items, results, m.now)
		}
		m.flights = nil
		m.acks(m.t)
		m.now += 50
	}
	for n, f := range m.feeds {
		if f.acked != len(f.entries) {
			m.t.Fatalf("shard %d: %d of %d entries acknowledged in the end", n, f.acked, len(f.entries))
		}
	}
	// What comes again may count again, and nothing else may.
	counted := m.tr.Stats().Redelivered
	for _, n := range m.tr.Stats().Counted {
		counted += n
	}
	if m.reported > counted {
		m.t.Fatalf("reported %d activities, %d there were", m.reported, counted)
	}
	if s := m.tr.Stats(); s.Outstanding != 0 || s.Pending != 0 || m.tr.Busy() {
		m.t.Fatalf("left in the end: %+v", s)
	}
}

func TestNeverAcknowledgesWhatWasNotJudged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		// One Repeat is some 30 steps, too few for a second look to come about.
		for range 20 {
			t.Repeat(map[string]func(*rapid.T){
				"append": m.append, "append2": m.append, "receive": m.receive, "receive2": m.receive,
				"due": m.due, "due2": m.due, "answer": m.answer, "answer2": m.answer,
				"ask": m.ask, "ask2": m.ask, "tell": m.tell, "tell2": m.tell,
				"acks": m.acks, "breaks": m.breaks, "moves": m.moves, "migrate": m.migrate,
				"time":  func(t *rapid.T) { m.now += int64(rapid.IntRange(1, 120).Draw(t, "ms")) },
				"sweep": func(*rapid.T) { m.tr.Sweep(m.now, 2) },
				"":      m.tr.check,
			})
		}
		m.settle()
	})
}

// check finds contradictions in the tracker's own structures.
func (t *Tracker) check(f *rapid.T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	listed := 0
	for _, l := range []*sessionList{&t.idle, &t.unresolved, &t.askAgain, &t.uncertain} {
		n := 0
		for s := l.front; s != nil; s = s.next {
			if s.in != l.name || s.gone || t.sessions[s.id] != s {
				f.Fatalf("session %s is in list %d wrongly: %+v", s.id, l.name, s)
			}
			n++
		}
		if n != l.size {
			f.Fatalf("list %d has %d sessions, says %d", l.name, n, l.size)
		}
		listed += n
	}
	queued := len(t.timed)
	for _, l := range []*deliveryList{&t.ready, &t.waiting, &t.retries, &t.rechecks} {
		for d := l.front; d != nil; d = d.next {
			if d.uncertain != (l == &t.rechecks) {
				f.Fatalf("delivery of %s is in queue %d, uncertain %v", d.s.id, l.name, d.uncertain)
			}
			if d.where != l.name || d.s.pending != d || d.s.gone {
				f.Fatalf("delivery of %s is in queue %d wrongly", d.s.id, l.name)
			}
			queued++
		}
	}
	wait, outstanding := 0, 0
	for _, s := range t.sessions {
		switch {
		case s.terms == nil:
			if u := s.pending.uncertain; u != (s.in == inUncertain) && s.in != inNone {
				f.Fatalf("session %s is in list %d, uncertain %v", s.id, s.in, u)
			}
		case s.pending == nil && s.flight == nil:
			if s.in != inIdle {
				f.Fatalf("session %s has nothing to report and is not idle", s.id)
			}
			if s.done != s.seq {
				f.Fatalf("session %s is idle with entries up to %d, answered to %d", s.id, s.seq, s.done)
			}
		case s.in == inIdle:
			f.Fatalf("session %s is idle with a report to make", s.id)
		case s.flight == nil:
			wait++
			if s.pending.where == nowhere {
				f.Fatalf("session %s has a report that is never due", s.id)
			}
		case s.pending != nil && s.pending.where != nowhere:
			f.Fatalf("session %s would be reported twice at once", s.id)
		}
	}
	if queued != wait {
		f.Fatalf("%d deliveries in queues, %d sessions wait", queued, wait)
	}
	for _, q := range t.shards {
		outstanding += q.len()
	}
	if outstanding != t.outstanding {
		f.Fatalf("%d entries outstanding, says %d", outstanding, t.outstanding)
	}
}
