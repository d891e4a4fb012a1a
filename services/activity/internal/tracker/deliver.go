package tracker

import (
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

// Item is one report: the latest activity of a session, to be given to
// BatchExtendTTL and then, with its answer, to Applied.
type Item struct {
	SessionID string
	// Time is when the activity happened.
	Time    int64
	Kind    string
	EventID string
	// Counts are the activities by kind that the report stands for; nil for a
	// single one of Kind.
	Counts map[string]int64

	s *session
}

// Batch is what Due returns.
type Batch struct {
	Items []Item
	// Links are the traces that the items' events belong to, at most MaxLinks.
	Links []Link
}

// MaxLinks bounds the links of one batch.
const MaxLinks = 128

// Result is the answer to one Item.
type Result struct {
	// Retry: the store could not answer. All else is then ignored.
	Retry bool
	// Rejected: the store will never take this item. All else but Reason is
	// then ignored.
	Rejected bool
	Outcome  sessionv1.ExtendTTLResponse_Outcome
	Reason   string
	// After is the session's deadline after the answer; may be nil.
	After *sessionv1.TTL
}

// Due takes at most max reports that are due at now, at most one for each
// session. With all, it takes those that could still wait, too, save for the
// pause of those that failed or got a first NOT_FOUND.
func (t *Tracker) Due(now int64, most int, all bool) Batch {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b Batch
	for len(b.Items) < most {
		d := t.nextDue(now, all)
		if d == nil {
			break
		}
		t.unschedule(d)
		b.add(t.launch(d, now))
	}
	return b
}

func (t *Tracker) nextDue(now int64, all bool) *delivery {
	if d := t.ready.front; d != nil {
		return d
	}
	for _, l := range []*deliveryList{&t.retries, &t.rechecks} {
		if d := l.front; d != nil && d.due <= now {
			return d
		}
	}
	if len(t.timed) > 0 && (all || t.timed[0].due <= now) {
		return t.timed[0]
	}
	if d := t.waiting.front; d != nil && (all || d.due <= now) {
		return d
	}
	return nil
}

// launch puts a delivery in flight. What it has beyond the session's deadline
// stays behind for the next: see delivery.late.
func (t *Tracker) launch(d *delivery, now int64) *delivery {
	s := d.s
	d.settle(s.deadline)
	if !d.hasLate {
		s.flight, s.pending = d, nil
		return d
	}
	first := t.take(s, d.first)
	first.latest, first.coalesced, first.links, first.linkCount = d.latest, d.coalesced, d.links, d.linkCount
	first.counts, first.more = d.counts, d.more
	d.counts, d.more = [inlineKinds]uint32{}, nil
	if first.untally(d.late.kind) {
		d.tally(d.late.kind, 1)
	}
	// It covers no entry for certain: the late ones lie between them.
	first.to = s.done
	first.uncertain, d.uncertain = d.uncertain, false
	d.latest, d.late, d.hasLate = d.late, activity{}, false
	d.first, d.coalesced, d.linkCount = now, 1, 0
	s.flight = first
	return first
}

func (b *Batch) add(d *delivery) {
	s := d.s
	b.Items = append(b.Items, Item{
		SessionID: s.id, Time: d.latest.time, Kind: s.terms.Rules.Kind(d.latest.kind), EventID: d.latest.eventID,
		Counts: d.byKind(s.terms.Rules), s: s,
	})
	for i := 0; i < d.linkCount && len(b.Links) < MaxLinks; i++ {
		b.Links = append(b.Links, d.links[i])
	}
}

// byKind spells the counts; nil where they are one activity of the latest's
// kind, which needs no saying.
func (d *delivery) byKind(r *policy.Rules) map[string]int64 {
	if d.coalesced == 1 {
		return nil
	}
	out := map[string]int64{}
	d.eachKind(func(kind uint8, n uint32) { out[r.Kind(kind)] += int64(n) })
	return out
}

// Applied takes the answers to items, one for each, in order. Items without an
// answer are retried. It sets Retry on a NOT_FOUND that is not final, so that
// the caller counts the outcome once.
func (t *Tracker) Applied(items []Item, results []Result, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, it := range items {
		r := &Result{Retry: true}
		if i < len(results) {
			r = &results[i]
		}
		t.applied(it, r, now)
	}
}

func (t *Tracker) applied(it Item, r *Result, now int64) {
	s := it.s
	if s.gone || s.flight == nil {
		return
	}
	d := s.flight
	s.flight = nil
	missing := !r.Retry && !r.Rejected && r.Outcome == sessionv1.ExtendTTLResponse_NOT_FOUND
	// Uncertain, though final once repeated: see the package's comment.
	if missing && !d.uncertain {
		r.Retry = true
		t.putBack(s, d, true, now)
		return
	}
	if r.Retry {
		t.putBack(s, d, false, now)
		return
	}
	if missing || (!r.Rejected && r.Outcome == sessionv1.ExtendTTLResponse_ENDED) {
		s.flight = d
		t.forget(s)
		return
	}
	if !r.Rejected {
		t.learn(s, it.Time, *r, now)
	}
	if int32(d.to-s.done) > 0 {
		s.done = d.to
	}
	t.recycle(d)
	t.rest(s, now)
}

// learn updates a session by an answer.
func (t *Tracker) learn(s *session, activityTime int64, r Result, now int64) {
	if a := r.After; a != nil {
		// Deadlines and counts only grow; answers may overtake each other.
		s.deadline = max(s.deadline, millis(a.GetExpireTime()))
		s.capped = s.capped || capped(a.GetExtensionCount(), a.GetMaxExtensions(), millis(a.GetExpireTime()), millis(a.GetCapTime()))
	}
	switch r.Outcome {
	case sessionv1.ExtendTTLResponse_EXTENDED:
		s.lastCause = max(s.lastCause, activityTime)
	case sessionv1.ExtendTTLResponse_CAPPED:
		s.capped = true
	case sessionv1.ExtendTTLResponse_NOT_NEEDED:
		if st := s.state(); s.terms.Strategy != sessionv1.TTLPolicy_EVERY_ACTIVITY && st.Extendable(activityTime) {
			// The reason can only be that this or a later activity has extended
			// the session already.
			s.lastCause = max(s.lastCause, activityTime)
		}
	default:
	}
	// A late activity was not judged against the deadline: an earlier one that
	// is still to come may be in time.
	if r.Outcome != sessionv1.ExtendTTLResponse_TOO_LATE {
		s.delivered = max(s.delivered, activityTime)
	}
	s.hold = 0
	st := s.state()
	if s.terms.Strategy == sessionv1.TTLPolicy_EVERY_ACTIVITY ||
		(r.Outcome != sessionv1.ExtendTTLResponse_EXTENDED && st.Extendable(activityTime)) {
		s.hold = now + t.flush
	}
}

func capped(count, most int32, deadline, latest int64) bool {
	return count >= most || (latest > 0 && deadline >= latest)
}

// rest decides what a session does next that has nothing in flight.
func (t *Tracker) rest(s *session, now int64) {
	switch {
	case s.pending != nil:
		st := s.state()
		s.pending.settle(s.deadline)
		t.schedule(s.pending, st.Due(s.pending.latest.time, now, t.flush), now)
	case s.orphan:
		t.forget(s)
	default:
		t.idle.push(s)
	}
}

// putBack makes a delivery whose report failed, or got a first NOT_FOUND,
// pending again, together with what came meanwhile, after a pause.
func (t *Tracker) putBack(s *session, d *delivery, uncertain bool, now int64) {
	if p := s.pending; p != nil {
		p.merge(d.latest, s.deadline)
		p.first = min(p.first, d.first)
		p.coalesced += d.coalesced
		d.eachKind(p.tally)
		for _, l := range d.links[:d.linkCount] {
			p.link(l)
		}
		t.recycle(d)
		d = p
	} else {
		s.pending = d
	}
	t.unschedule(d)
	if d.uncertain = uncertain; uncertain {
		d.due = now + t.recheck
		t.rechecks.push(d)
		return
	}
	d.due = now + t.retry
	t.retries.push(d)
}

// schedule makes a pending delivery due at this time, unless it is earlier.
func (t *Tracker) schedule(d *delivery, due, now int64) {
	switch {
	case d.where == inRetry, d.where == inRecheck, d.where == inReady, d.where != nowhere && due >= d.due:
		return
	}
	t.unschedule(d)
	d.due = due
	switch {
	case due <= now:
		t.ready.push(d)
	// Flush intervals that begin later end later, so a list keeps their order;
	// what does not fit there goes to the heap.
	case t.waiting.back == nil && due == d.first+t.flush, t.waiting.back != nil && due >= t.waiting.back.due:
		t.waiting.push(d)
	default:
		t.timed.add(d)
	}
}

func (t *Tracker) unschedule(d *delivery) {
	switch d.where {
	case inReady:
		t.ready.remove(d)
	case inWaiting:
		t.waiting.remove(d)
	case inRetry:
		t.retries.remove(d)
	case inRecheck:
		t.rechecks.remove(d)
	case inTimed:
		t.timed.remove(d)
	case nowhere:
	}
}

// NextDue returns when a report is due next, at the earliest; 0 for at once. ok
// is false when none is.
func (t *Tracker) NextDue() (at int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready.front != nil {
		return 0, true
	}
	consider := func(due int64) {
		if !ok || due < at {
			at, ok = due, true
		}
	}
	for _, l := range []*deliveryList{&t.waiting, &t.retries, &t.rechecks} {
		if d := l.front; d != nil {
			consider(d.due)
		}
	}
	if len(t.timed) > 0 {
		consider(t.timed[0].due)
	}
	return at, ok
}

// maxFree bounds the deliveries kept for reuse.
const maxFree = 65536

// take returns an empty delivery of a session.
func (t *Tracker) take(s *session, now int64) *delivery {
	var d *delivery
	if n := len(t.free); n > 0 {
		d = t.free[n-1]
		t.free[n-1] = nil
		t.free = t.free[:n-1]
	} else {
		d = new(delivery)
	}
	d.s, d.first = s, now
	return d
}

func (t *Tracker) recycle(d *delivery) {
	if len(t.free) < maxFree {
		*d = delivery{}
		t.free = append(t.free, d)
	}
}
