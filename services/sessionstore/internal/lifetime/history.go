package lifetime

import (
	"maps"
	"slices"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	// MaxDecisions is how many decisions a session remembers. With those in a
	// row that changed nothing as one, they are a whole life under the default
	// policy.
	MaxDecisions = 8
	// MaxKinds is how many kinds of activity a session counts apart.
	MaxKinds = 32
	// OtherKind is what further kinds count as.
	OtherKind = "other"
)

// Decision is what became of a report of activity. Times are Unix
// milliseconds.
type Decision struct {
	At       int64
	Activity int64
	Outcome  sessionv1.ExtendTTLResponse_Outcome
	Kind     string
	EventID  string
	// Expire, Count and Cause are the session's before the decision.
	Expire int64
	Count  int32
	Cause  int64
	// After is the deadline after it.
	After int64
	// Activities is how many activities, Repeats how many reports in a row it
	// stands for.
	Activities int64
	Repeats    int64
}

// NewDecision describes a judged activity.
func NewDecision(o sessionv1.ExtendTTLResponse_Outcome, before, after State, activity, now int64, kind, eventID string, activities int64) Decision {
	return Decision{
		At: now, Activity: min(activity, now), Outcome: o, Kind: kind, EventID: eventID,
		Expire: before.Expire, Count: before.Count, Cause: before.LastCause, After: after.Expire,
		Activities: activities, Repeats: 1,
	}
}

// Message describes the decision for people.
func (d Decision) Message(t Terms) *sessionv1.Decision {
	before := State{Expire: d.Expire, Count: d.Count, LastCause: d.Cause}
	after := State{Expire: d.After, Count: d.Count}
	if d.Outcome == sessionv1.ExtendTTLResponse_EXTENDED {
		after.Count++
	}
	return &sessionv1.Decision{
		Time: Time(d.At), ActivityTime: Time(d.Activity), ActivityKind: d.Kind, EventId: d.EventID,
		Outcome: d.Outcome, Reason: Reason(d.Outcome, t, before, after, d.Activity),
		Coalesced: d.Activities, Repeats: d.Repeats,
		ExpireTimeBefore: Time(d.Expire), ExpireTimeAfter: Time(d.After),
	}
}

// History is what a session remembers of its activity. It is replaced, never
// changed, so that readers need no lock.
type History struct {
	// Kind is that of the latest activity.
	Kind string
	// Counts are the activities by kind.
	Counts map[string]int64
	// Decisions are the latest MaxDecisions, the latest last. The last one has
	// the number Last; numbers begin with 1.
	Decisions []Decision
	Last      int64
}

// Repeats says whether a report is one that the history ends with: it was sent
// again because its answer was lost, and is no decision of its own.
func (h *History) Repeats(d Decision) bool {
	if h == nil || len(h.Decisions) == 0 || d.EventID == "" {
		return false
	}
	last := h.Decisions[len(h.Decisions)-1]
	return last.EventID == d.EventID && last.Activity == d.Activity
}

// Knows says whether a report is one of those that the history remembers: of the
// same event, or at the same time where it names none.
func (h *History) Knows(d Decision) bool {
	return h != nil && slices.ContainsFunc(h.Decisions, func(o Decision) bool {
		return o.Activity == d.Activity && o.EventID == d.EventID && (d.EventID != "" || o.At == d.At && o.Kind == d.Kind)
	})
}

// Add returns the history with one more decision. counts are the activities by
// kind that it stands for, last is the session's latest activity before it. What
// came too late was no activity of the session.
func (h *History) Add(d Decision, counts map[string]int64, last int64) *History {
	out := &History{Last: 1}
	if h != nil {
		out.Kind, out.Counts, out.Decisions, out.Last = h.Kind, h.Counts, h.Decisions, h.Last+1
	}
	judged := d.Outcome != sessionv1.ExtendTTLResponse_TOO_LATE && d.Outcome != sessionv1.ExtendTTLResponse_ENDED
	if judged && (d.Activity >= last || out.Kind == "") {
		out.Kind = d.Kind
	}
	if judged && len(counts) > 0 {
		out.Counts = maps.Clone(out.Counts)
		if out.Counts == nil {
			out.Counts = make(map[string]int64, len(counts))
		}
		for kind, n := range counts {
			if _, known := out.Counts[kind]; !known && len(out.Counts) >= MaxKinds {
				kind = OtherKind
			}
			out.Counts[kind] += n
		}
	}
	n := len(out.Decisions)
	if n > 0 && d.Outcome != sessionv1.ExtendTTLResponse_EXTENDED && out.Decisions[n-1].Outcome == d.Outcome {
		d.Activities += out.Decisions[n-1].Activities
		d.Repeats += out.Decisions[n-1].Repeats
		out.Last--
		n--
	}
	out.Decisions = append(slices.Clone(out.Decisions[max(0, n+1-MaxDecisions):n]), d)
	return out
}
