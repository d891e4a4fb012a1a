package tracker

import (
	"maps"
	"strconv"
)

// entry is a feed entry that was delivered to us and is not acknowledged.
type entry struct {
	cursor string
	// s and seq say whose answer it waits for; nil for nobody's.
	s        *session
	seq      uint32
	appended int64
}

// shardQueue holds the outstanding entries of a shard, in order.
type shardQueue struct {
	entries []entry
	head    int
	// ack is the cursor up to which everything is done; dirty when it was not
	// handed out yet.
	ack   string
	dirty bool
}

func (q *shardQueue) len() int { return len(q.entries) - q.head }

func (q *shardQueue) push(e entry) {
	if q.head > 1024 && q.head*2 > len(q.entries) {
		n := copy(q.entries, q.entries[q.head:])
		clear(q.entries[n:])
		q.entries, q.head = q.entries[:n], 0
	}
	q.entries = append(q.entries, e)
}

// advance takes what is done off the front and returns how many that were.
func (q *shardQueue) advance() int {
	begin := q.head
	for q.head < len(q.entries) {
		e := &q.entries[q.head]
		if e.s != nil && !e.s.answered(e.seq) {
			break
		}
		q.ack, q.dirty = e.cursor, true
		*e = entry{}
		q.head++
	}
	n := q.head - begin
	if q.head == len(q.entries) {
		q.entries, q.head = q.entries[:0], 0
		if cap(q.entries) > 4096 {
			q.entries = nil
		}
	}
	return n
}

// place is a cursor taken apart, to recognise entries that come again. The
// zero place is before all.
type place struct{ millis, seq uint64 }

func (p place) after(o place) bool {
	return p.millis > o.millis || (p.millis == o.millis && p.seq > o.seq)
}

// parsePlace reads "millis-seq"; ok is false for any other spelling, which is
// taken for an entry that was never seen.
func parsePlace(s string) (place, bool) {
	for i := 0; i < len(s); i++ {
		if s[i] != '-' {
			continue
		}
		ms, err1 := strconv.ParseUint(s[:i], 10, 64)
		seq, err2 := strconv.ParseUint(s[i+1:], 10, 64)
		return place{ms, seq}, err1 == nil && err2 == nil
	}
	return place{}, false
}

// Ack says that everything of a shard up to a cursor is done.
type Ack struct {
	Shard  int32
	Cursor string
}

// Acks appends the acknowledgements that became possible since the last call.
func (t *Tracker) Acks(dst []Ack) []Ack {
	t.mu.Lock()
	defer t.mu.Unlock()
	for shard, q := range t.shards {
		t.outstanding -= q.advance()
		if q.dirty {
			dst = append(dst, Ack{Shard: shard, Cursor: q.ack})
			q.dirty = false
		}
	}
	return dst
}

// Outstanding is the number of entries that are not done, as of the last Acks
// or Observe.
func (t *Tracker) Outstanding() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.outstanding
}

// Reset forgets every outstanding entry: the stream broke, and what was not
// acknowledged will come again. Activity that was counted is still reported.
func (t *Tracker) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.shards)
	t.outstanding = 0
	// What unresolved sessions held comes again, too.
	t.dropped = map[shardPlace]struct{}{}
	for _, s := range t.sessions {
		if s.terms != nil {
			continue
		}
		for _, h := range s.pending.held {
			if !h.again {
				t.dropped[shardPlace{s.shard, h.place}] = struct{}{}
			}
		}
		t.forget(s)
	}
}

// Assigned says which shards are read from now on. Entries of others will go
// to somebody else, and their sessions are forgotten once nothing waits.
func (t *Tracker) Assigned(shards []int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := make(map[int32]bool, len(shards))
	for _, n := range shards {
		now[n] = true
	}
	same := maps.Equal(now, t.assigned)
	t.assigned = now
	for n, q := range t.shards {
		if !now[n] {
			t.outstanding -= q.len()
			delete(t.shards, n)
		}
	}
	if same {
		return
	}
	for _, s := range t.sessions {
		s.orphan = !now[s.shard]
		if s.orphan && (s.terms == nil || s.in == inIdle) {
			t.forget(s)
		}
	}
}
