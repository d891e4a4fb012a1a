// Package explain keeps the last decisions about each of a bounded number of
// sessions, to answer why one was or was not extended.
package explain

import (
	"container/list"
	"sync"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// PerSession is how many decisions are kept for a session.
const PerSession = 8

// Decision is one answer of the store, or the reason for not asking.
type Decision struct {
	// Time is when it was taken, Activity when the activity happened: Unix ms.
	Time     int64
	Activity int64
	Kind     string
	EventID  string
	// Outcome is unspecified when the store was not asked.
	Outcome sessionv1.ExtendTTLResponse_Outcome
	Reason  string
	// Coalesced is how many activities the decision stands for.
	Coalesced int64
}

// Log keeps decisions; the session with the oldest latest decision goes first
// when there are too many. It is safe for concurrent use.
type Log struct {
	mu       sync.Mutex
	most     int
	sessions map[string]*list.Element
	order    *list.List // of *entry, latest first
}

type entry struct {
	id    string
	ring  []Decision // grows to PerSession, then wraps
	start int
}

// NewLog returns a log for at most this many sessions, at least one.
func NewLog(sessions int) *Log {
	return &Log{most: max(1, sessions), sessions: map[string]*list.Element{}, order: list.New()}
}

// Add appends a decision about a session.
func (l *Log) Add(id string, d Decision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	el, ok := l.sessions[id]
	if !ok {
		for len(l.sessions) >= l.most {
			oldest := l.order.Back()
			l.remove(oldest)
		}
		el = l.order.PushFront(&entry{id: id})
		l.sessions[id] = el
	} else {
		l.order.MoveToFront(el)
	}
	e := entryOf(el)
	if len(e.ring) < PerSession {
		e.ring = append(e.ring, d)
		return
	}
	e.ring[e.start] = d
	e.start = (e.start + 1) % PerSession
}

// Forget drops a session's decisions.
func (l *Log) Forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if el, ok := l.sessions[id]; ok {
		l.remove(el)
	}
}

// Last returns a session's decisions, the latest first.
func (l *Log) Last(id string) []Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	el, ok := l.sessions[id]
	if !ok {
		return nil
	}
	e := entryOf(el)
	out := make([]Decision, 0, len(e.ring))
	for i := len(e.ring) - 1; i >= 0; i-- {
		out = append(out, e.ring[(e.start+i)%len(e.ring)])
	}
	return out
}

// Len is the number of sessions that have decisions.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sessions)
}

func (l *Log) remove(el *list.Element) {
	delete(l.sessions, entryOf(el).id)
	l.order.Remove(el)
}

// entryOf is the one place that knows what the list holds.
func entryOf(el *list.Element) *entry {
	e, _ := el.Value.(*entry)
	return e
}
