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
	// Shards are those read here.
	Shards []ShardStats
}

// ShardStats are the sizes of a shard.
type ShardStats struct {
	Shard       int32
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
	for shard := range t.assigned {
		one := ShardStats{Shard: shard}
		if q := t.shards[shard]; q != nil {
			t.outstanding -= q.advance()
			if one.Outstanding = q.len(); one.Outstanding > 0 {
				one.OldestAppend = q.entries[q.head].appended
			}
		}
		s.Shards = append(s.Shards, one)
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

// View is what is known of a session's activity that the store has not
// answered for.
type View struct {
	// Last is the time of the latest; Kind is its kind.
	Last int64
	Kind string
	// Counts are the activities by kind.
	Counts map[string]int64
}

// Waiting returns the activity of a session that the store does not know of
// yet; ok is false when there is none here.
func (t *Tracker) Waiting(id string) (v View, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil || s.terms == nil {
		return View{}, false
	}
	for _, d := range []*delivery{s.flight, s.pending} {
		if d == nil {
			continue
		}
		last := d.latest
		if d.hasLate {
			last = later(last, d.late)
		}
		if !ok || last.time >= v.Last {
			v.Last, v.Kind = last.time, s.terms.Rules.Kind(last.kind)
		}
		if v.Counts == nil {
			v.Counts = map[string]int64{}
		}
		d.eachKind(func(kind uint8, n uint32) { v.Counts[s.terms.Rules.Kind(kind)] += int64(n) })
		ok = true
	}
	return v, ok
}

// Tracked says whether a session is tracked.
func (t *Tracker) Tracked(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sessions[id] != nil
}
