package tracker

import (
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
)

// inlineKinds is how many kinds a delivery counts without a table of its own.
const inlineKinds = 8

// session is what is known of one session. There may be a million of them, so
// every field counts; what exists only while activity waits is in delivery.
type session struct {
	id string
	// terms is nil while the session is unresolved.
	terms *policy.Terms

	deadline  int64
	lastCause int64 // latest activity known to have extended it
	hold      int64 // see policy.State; when to ask again, while unresolved
	touched   int64 // when it was last seen in the feed
	delivered int64 // latest activity that the store has judged

	pending *delivery // to be reported, or held while unresolved
	flight  *delivery // reported, without an answer yet

	prev, next *session // of the list it is in

	shard int32
	// seq is the number of the latest entry that waits for an answer; all up
	// to done have theirs. They wrap around.
	seq, done uint32

	in listName
	// capped: no further extension is possible.
	capped bool
	// gone: forgotten; entries and answers that still refer to it are void.
	gone bool
	// orphan: its shard is read by somebody else now.
	orphan bool
}

func (s *session) state() policy.State {
	st := policy.State{
		Terms: s.terms, Deadline: s.deadline, LastCause: s.lastCause, Hold: s.hold,
		Capped: s.capped, InFlight: s.flight != nil,
	}
	if s.pending != nil {
		st.First = s.pending.first
	}
	return st
}

// answered says whether the entry with this number needs to wait no longer.
func (s *session) answered(seq uint32) bool {
	return s.gone || int32(s.done-seq) >= 0
}

// activity is a counted event.
type activity struct {
	time    int64
	eventID string
	kind    uint8
}

// delivery is activity of one session that waits for its report or answer.
type delivery struct {
	s *session
	// latest is the activity to report. late is one at or after the deadline
	// as known, beside one before it: reported together, as the later of the
	// two, they would be too late, though the first is not.
	latest  activity
	late    activity
	hasLate bool

	// to is the number of the last entry it covers.
	to        uint32
	coalesced uint32
	first     int64 // when the oldest was seen
	due       int64

	prev, next *delivery
	index      int // in the heap
	where      queueName
	// uncertain: the latest answer for the session was NOT_FOUND, the first in a
	// row. The next one is final.
	uncertain bool

	// counts are the activities by kind; more are those of further kinds.
	counts [inlineKinds]uint32
	more   map[uint8]uint32

	links     [maxLinks]Link
	linkCount int

	held []heldEvent
}

// tally counts activities of a kind.
func (d *delivery) tally(kind uint8, n uint32) {
	if kind < inlineKinds {
		d.counts[kind] += n
		return
	}
	if d.more == nil {
		d.more = map[uint8]uint32{}
	}
	d.more[kind] += n
}

// untally takes one activity of a kind back; false when there is none.
func (d *delivery) untally(kind uint8) bool {
	switch {
	case kind < inlineKinds && d.counts[kind] > 0:
		d.counts[kind]--
	case d.more[kind] > 1:
		d.more[kind]--
	case d.more[kind] == 1:
		delete(d.more, kind)
	default:
		return false
	}
	return true
}

// eachKind calls fn for every kind that was counted.
func (d *delivery) eachKind(fn func(kind uint8, n uint32)) {
	for kind, n := range d.counts {
		if n > 0 {
			fn(uint8(kind), n)
		}
	}
	for kind, n := range d.more {
		fn(kind, n)
	}
}

// merge adds an activity.
func (d *delivery) merge(a activity, deadline int64) {
	if d.coalesced == 0 {
		d.latest = a
		return
	}
	before := a.time < deadline
	switch {
	case d.hasLate && before:
		d.latest = later(d.latest, a)
	case d.hasLate:
		d.late = later(d.late, a)
	case before == (d.latest.time < deadline):
		d.latest = later(d.latest, a)
	case before:
		d.late, d.latest, d.hasLate = d.latest, a, true
	default:
		d.late, d.hasLate = a, true
	}
}

// settle gives up the split where the deadline has moved past both.
func (d *delivery) settle(deadline int64) {
	if d.hasLate && (d.late.time < deadline) == (d.latest.time < deadline) {
		d.latest, d.late, d.hasLate = later(d.latest, d.late), activity{}, false
	}
}

func (d *delivery) link(l Link) {
	if !l.valid() {
		return
	}
	if d.linkCount < maxLinks {
		d.links[d.linkCount] = l
		d.linkCount++
		return
	}
	// The first ones and the latest tell most.
	d.links[maxLinks-1] = l
}

func later(a, b activity) activity {
	if b.time >= a.time {
		return b
	}
	return a
}
