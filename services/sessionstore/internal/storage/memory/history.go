package memory

import (
	"google.golang.org/protobuf/encoding/protowire"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// Fields of effectHistory. The number of the decision makes applying it twice
// harmless; counts are totals.
const (
	hID = iota + 1
	hNumber
	hLastKind
	hCount
	hAt
	hActivity
	hOutcome
	hKind
	hEvent
	hExpire
	hExtensions
	hCause
	hAfter
	hActivities
	hRepeats
)

// history logs the latest decision about a session.
func (tx *txn) history(x *session) {
	if h := x.history; tx.durable() && h != nil {
		tx.add(effectHistory, encodeHistory(x.view.GetId(), h, len(h.Decisions)-1))
	}
}

// wholeHistory logs everything that is remembered of a session.
func (tx *txn) wholeHistory(x *session) {
	if x.history == nil {
		return
	}
	for i := range x.history.Decisions {
		tx.add(effectHistory, encodeHistory(x.view.GetId(), x.history, i))
	}
}

func encodeHistory(id string, h *lifetime.History, i int) []byte {
	d := h.Decisions[i]
	b := field(nil, hID, id)
	b = number(b, hNumber, h.Last-int64(len(h.Decisions)-1-i))
	b = field(b, hLastKind, h.Kind)
	for kind, n := range h.Counts {
		b = protowire.AppendTag(b, hCount, protowire.BytesType)
		b = protowire.AppendBytes(b, number(field(nil, 1, kind), 2, n))
	}
	b = number(b, hAt, d.At)
	b = number(b, hActivity, d.Activity)
	b = number(b, hOutcome, int64(d.Outcome))
	b = field(b, hKind, d.Kind)
	b = field(b, hEvent, d.EventID)
	b = number(b, hExpire, d.Expire)
	b = number(b, hExtensions, int64(d.Count))
	b = number(b, hCause, d.Cause)
	b = number(b, hAfter, d.After)
	b = number(b, hActivities, d.Activities)
	return number(b, hRepeats, d.Repeats)
}

// applyHistory puts a decision in its place: after the last one, or instead of
// it. An older one is there already.
func (s *Store) applyHistory(f fields) error {
	sh := s.shardOf(f.text(hID))
	if sh == nil || sh.sessions[f.text(hID)] == nil {
		return nil
	}
	x := sh.sessions[f.text(hID)]
	h := &lifetime.History{Kind: f.text(hLastKind), Last: f.num(hNumber), Counts: map[string]int64{}}
	for _, raw := range f.all(hCount) {
		c, err := parseFields(raw)
		if err != nil {
			return err
		}
		h.Counts[c.text(1)] = c.num(2)
	}
	if old := x.history; old != nil {
		if h.Last < old.Last {
			return nil
		}
		h.Decisions = old.Decisions
		if h.Last == old.Last {
			h.Decisions = h.Decisions[:len(h.Decisions)-1]
		}
		h.Decisions = h.Decisions[max(0, len(h.Decisions)+1-lifetime.MaxDecisions):]
	}
	h.Decisions = append(h.Decisions[:len(h.Decisions):len(h.Decisions)], lifetime.Decision{
		At: f.num(hAt), Activity: f.num(hActivity), Outcome: sessionv1.ExtendTTLResponse_Outcome(f.num(hOutcome)),
		Kind: f.text(hKind), EventID: f.text(hEvent),
		Expire: f.num(hExpire), Count: int32(f.num(hExtensions)), Cause: f.num(hCause), After: f.num(hAfter),
		Activities: f.num(hActivities), Repeats: f.num(hRepeats),
	})
	x.history = h
	return nil
}
