package tracker

import (
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Answer is what the store says about an unresolved session.
type Answer struct {
	SessionID string
	// Session is nil when one of the others is set.
	Session *sessionv1.Session
	// Gone: there is no such session, as far as this answer knows.
	Gone bool
	// Rejected: the store will never accept this id.
	Rejected bool
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
			if s = t.nextPaused(now); s == nil {
				break
			}
		}
		t.unlink(s)
		ids = append(ids, s.id)
	}
	return ids
}

// nextPaused returns a session whose pause is over; nil when there is none.
func (t *Tracker) nextPaused(now int64) *session {
	for _, l := range []*sessionList{&t.askAgain, &t.uncertain} {
		if s := l.front; s != nil && s.hold <= now {
			return s
		}
	}
	return nil
}

// NextUnresolved returns when Unresolved has something next; 0 for at once. ok
// is false when it has nothing.
func (t *Tracker) NextUnresolved() (at int64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unresolved.front != nil {
		return 0, true
	}
	for _, l := range []*sessionList{&t.askAgain, &t.uncertain} {
		if s := l.front; s != nil && (!ok || s.hold < at) {
			at, ok = s.hold, true
		}
	}
	return at, ok
}

// Resolve takes the store's answers and judges the events held for them. asked
// is the time before the call.
func (t *Tracker) Resolve(answers []Answer, asked, now int64) {
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
			s.pending.uncertain = false
			s.hold = now + t.retry
			t.askAgain.push(s)
		case a.Rejected:
			t.forget(s)
		case a.Gone || a.Session == nil:
			t.confirmGone(s, asked, now)
		// A session past its deadline is over only once it was swept: late
		// activity may still revive it until then.
		case a.Session.GetEndTime() != nil || a.Session.GetPhase() == sessionv1.Session_ENDED:
			t.forget(s)
		default:
			t.resolve(s, a.Session, now)
		}
	}
}

// confirmGone forgets an unresolved session at the second Gone in a row; the
// first schedules another question after the pause. An answer to a question
// asked before the pause ended counts as a first: after a Reset, two questions
// about a session can be open at once, and both answers be of one moment.
func (t *Tracker) confirmGone(s *session, asked, now int64) {
	if s.pending.uncertain && asked >= s.hold {
		t.forget(s)
		return
	}
	s.pending.uncertain = true
	s.hold = now + t.recheck
	t.uncertain.push(s)
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
	case inUncertain:
		t.uncertain.remove(s)
	case inNone:
	}
}
