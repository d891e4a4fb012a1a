package tracker

// Stats are counts since the start and sizes at the moment.
type Stats struct {
	// Counted activities by policy.Labels, and events that do not count.
	Counted   []uint64
	Ignored   uint64
	Lifecycle uint64
	// Redelivered entries, which were counted before.
	Redelivered uint64
	// Evicted sessions for lack of room, and those swept as unused.
	Evicted uint64
	Swept   uint64

	Tracked     int
	Pending     int
	Outstanding int
	// OldestAppend is when the oldest outstanding entry was appended; 0 when
	// there is none.
	OldestAppend int64
}

// Stats returns a copy.
func (t *Tracker) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Counted = append([]uint64(nil), s.Counted...)
	s.Tracked = len(t.sessions)
	s.Pending = len(t.sessions) - t.idle.size
	for _, q := range t.shards {
		t.outstanding -= q.advance()
		if q.len() == 0 {
			continue
		}
		if at := q.entries[q.head].appended; s.OldestAppend == 0 || at < s.OldestAppend {
			s.OldestAppend = at
		}
	}
	s.Outstanding = t.outstanding
	return s
}

// Full says that there is no room for another session, nor any to evict. No
// more entries should be asked for until the store has answered.
func (t *Tracker) Full() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.sessions) >= t.maxTracked && t.idle.front == nil
}

// Busy says whether anything waits for the store.
func (t *Tracker) Busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idle.size < len(t.sessions)
}

// Sweep forgets sessions with nothing to report that are past their deadline
// or were not seen for long. It looks at no more than this many and goes on
// from there at the next call; done is true when it came to the end.
func (t *Tracker) Sweep(now int64, most int) (done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sweepAt == nil {
		t.sweepAt = t.idle.front
	}
	for range most {
		s := t.sweepAt
		if s == nil {
			return true
		}
		t.sweepAt = s.next
		if s.deadline+pastDeadline < now || s.touched+t.forgetAfter < now {
			t.forget(s)
			t.stats.Swept++
		}
	}
	return t.sweepAt == nil
}

// View is what is known of a session's activity.
type View struct {
	// Last is the time of the latest counted activity, or the creation; Kind
	// is empty when none was seen here.
	Last int64
	Kind string
	// Counts are the counted activities by kind.
	Counts map[string]int64
}

// Lookup returns what is known of a session; ok is false when it is not
// tracked, or not resolved yet.
func (t *Tracker) Lookup(id string) (v View, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.terms == nil {
		return View{}, false
	}
	v = View{Last: s.last, Counts: map[string]int64{}}
	for n, c := range s.counts {
		if c > 0 {
			v.Counts[s.terms.Rules.Kind(uint8(n))] = int64(c)
		}
	}
	for n, c := range t.kinds[s] {
		v.Counts[s.terms.Rules.Kind(n)] = int64(c)
	}
	if len(v.Counts) > 0 {
		v.Kind = s.terms.Rules.Kind(s.lastKind)
	}
	return v, true
}
