package policy

import (
	"math"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Lead is how long before its deadline a session's activity is reported at
// the latest, where that activity may extend it: enough for the call.
const Lead = 500

// Terms are the numbers of a frozen policy that decide about extensions, and
// its compiled rules. They never change and are shared between sessions.
type Terms struct {
	Strategy    sessionv1.TTLPolicy_Strategy
	Max         int32
	ExtendBelow int64
	MinInterval int64
	Rules       *Rules
}

func newTerms(p *sessionv1.TTLPolicy) Terms {
	return Terms{
		Strategy:    p.GetStrategy(),
		Max:         p.GetMaxExtensions(),
		ExtendBelow: p.GetExtendBelow().AsDuration().Milliseconds(),
		MinInterval: p.GetMinInterval().AsDuration().Milliseconds(),
	}
}

// State is what Decide needs to know of a session.
type State struct {
	Terms    *Terms
	Deadline int64
	// LastCause is the time of the latest activity known to have extended the
	// session; 0 for none known.
	LastCause int64
	// Hold is the time before which nothing is due at once: the store has just
	// declined what looked possible, or the strategy asks for one call in a
	// flush interval. 0 for no hold.
	Hold int64
	// First is when the oldest activity that waits for its report was seen; 0
	// when none waits.
	First int64
	// Capped is true when no further extension is possible.
	Capped bool
	// InFlight is true while a report of this session has no answer. The
	// activity then waits for the answer, whatever Due says.
	InFlight bool
}

// Event is what Decide needs to know of an event.
type Event struct {
	Type   string
	Origin sessionv1.Event_Origin
	// Time is when it happened.
	Time int64
}

// Decision is what to do about an event.
type Decision struct {
	Verdict Verdict
	// Kind is the number of the activity's kind in the session's rules.
	Kind uint8
	// Due is when the activity must be reported; not after now for at once.
	// Meaningful only for Counts.
	Due int64
}

// Decide judges an event at now: does it count, as what, and when must it be
// reported. flush is the flush interval.
func Decide(s *State, e Event, now, flush int64) Decision {
	kind, v := s.Terms.Rules.Match(e.Type, e.Origin)
	if v != Counts {
		return Decision{Verdict: v, Due: math.MaxInt64}
	}
	return Decision{Kind: kind, Due: s.Due(e.Time, now, flush)}
}

// Due returns when an activity must be reported: now where it can extend the
// session by the session's terms, else coalesced with others until the flush
// interval is over or, if that is before, the session's deadline, so that the
// store never waits for this session's activity to decide on its expiry.
func (s *State) Due(activity, now, flush int64) int64 {
	first := s.First
	if first == 0 {
		first = now
	}
	due := min(first+flush, s.Deadline)
	if s.InFlight {
		return due
	}
	if s.Extendable(activity) {
		if s.Hold <= now {
			return now
		}
		due = min(due, s.Hold, s.Deadline-Lead)
	}
	return due
}

// Extendable says whether an activity can extend the session, as far as is
// known here. The store's answer is what counts: this only decides whether it
// is asked at once.
func (s *State) Extendable(activity int64) bool {
	if s.Capped {
		return false
	}
	switch s.Terms.Strategy {
	case sessionv1.TTLPolicy_EVERY_ACTIVITY:
		return true
	case sessionv1.TTLPolicy_ONCE_PER_INTERVAL:
		return s.LastCause == 0 || (activity > s.LastCause && activity-s.LastCause >= s.Terms.MinInterval)
	default:
		return s.Deadline-activity < s.Terms.ExtendBelow && activity > s.LastCause
	}
}
