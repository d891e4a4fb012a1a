package tracker

import (
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Answer is what the store says about an unresolved session.
type Answer struct {
	SessionID string
	// Session is nil when Gone or Retry.
	Session *sessionv1.Session
	// Gone: there is no such session.
	Gone bool
	// Retry: the store could not answer.
	Retry bool
}

// Unresolved takes at most this many ids of sessions that the store must be
// asked for; each must be answered by Resolve.
func (t *Tracker) Unresolved(now int64, most int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for len(ids) < most {
		s := t.unresolved.front
		if s == nil {
			if s = t.askAgain.front; s == nil || s.hold > now {
				break
			}
		}
		t.unlink(s)
		ids = append(ids, s.id)
	}
	return ids
}

// NextUnresolved returns when Unresolved has something next; 0 for at once. ok
// is false when it has nothing.
func (t *Tracker) NextUnresolved() (at int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unresolved.front != nil {
		return 0, true
	}
	if s := t.askAgain.front; s != nil {
		return s.hold, true
	}
	return 0, false
}

// Resolve takes the store's answers and judges the events held for them.
func (t *Tracker) Resolve(answers []Answer, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range answers {
		s := t.sessions[a.SessionID]
		// Forgotten meanwhile, or asked for anew since.
		if s == nil || s.terms != nil || s.in != inNone {
			continue
		}
		switch {
		case a.Retry:
			s.hold = now + t.retry
			t.askAgain.push(s)
		// A session past its deadline is over only once it was swept: late
		// activity may still revive it until then.
		case a.Gone || a.Session == nil || a.Session.GetEndTime() != nil || a.Session.GetPhase() == sessionv1.Session_ENDED:
			t.forget(s)
		default:
			t.resolve(s, a.Session, now)
		}
	}
}

func (t *Tracker) resolve(s *session, from *sessionv1.Session, now int64) {
	p := from.GetTtlPolicy()
	s.terms = t.interner.Terms(p)
	s.deadline = millis(from.GetExpireTime())
	s.capped = capped(from.GetExtensionCount(), p.GetMaxExtensions(), s.deadline, millis(from.GetCapTime()))
	s.hold = 0
	// At creation last_activity_time is no activity that was judged.
	if last := millis(from.GetLastActivityTime()); last > millis(from.GetCreateTime()) {
		s.delivered = last
	}
	d := s.pending
	s.pending = nil
	for _, h := range d.held {
		t.count(s, h.sighting, h.seq, now)
	}
	t.recycle(d)
	if s.pending == nil {
		s.done = s.seq
		t.idle.push(s)
		return
	}
	// Held events that do not count have numbers, too.
	s.pending.to = s.seq
}

// add starts to track a session of which nothing is known yet.
func (t *Tracker) add(e *sessionv1.FeedEntry) *session {
	if len(t.sessions) >= t.maxTracked {
		if oldest := t.idle.front; oldest != nil {
			t.forget(oldest)
			t.stats.Evicted++
		}
	}
	s := &session{id: e.GetSessionId(), shard: e.GetShard()}
	s.pending = t.take(s, 0)
	t.sessions[s.id] = s
	t.unresolved.push(s)
	return s
}

// forget drops a session; its outstanding entries are done.
func (t *Tracker) forget(s *session) {
	s.gone = true
	if t.sweepAt == s {
		t.sweepAt = s.next
	}
	t.unlink(s)
	delete(t.sessions, s.id)
	if s.pending != nil {
		t.unschedule(s.pending)
		t.recycle(s.pending)
	}
	if s.flight != nil {
		t.recycle(s.flight)
	}
	s.pending, s.flight, s.terms = nil, nil, nil
}

// unlink takes a session out of the list it is in.
func (t *Tracker) unlink(s *session) {
	switch s.in {
	case inIdle:
		if t.sweepAt == s {
			t.sweepAt = s.next
		}
		t.idle.remove(s)
	case inUnresolved:
		t.unresolved.remove(s)
	case inAskAgain:
		t.askAgain.remove(s)
	case inNone:
	}
}
