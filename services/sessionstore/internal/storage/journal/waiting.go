package journal

import (
	"container/list"
	"sync"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// queue are the writes of one session, the oldest first. Those before next are
// replayed; they are kept, on disk too, until all are, so that what callers
// were told of the session can be built again.
type queue struct {
	id     string
	writes []*accepted
	next   int
	// key is the request key that one of them creates the session under.
	key string
}

// waiting are the sessions that have writes waiting.
type waiting struct {
	mu       sync.Mutex
	queues   map[string]*queue
	order    *list.List // of *queue: who is drained next; without those that are being drained
	keys     map[string]string
	seq      int64
	count    int64 // writes to be replayed
	kept     int64 // writes in queues
	bytes    int64 // what those in queues take
	drained  int64
	accepted int64
	// from is the earliest time that a write which waits, or waited since the
	// last time that none did, speaks of.
	from time.Time
}

func (w *waiting) init() {
	w.queues, w.order, w.keys = map[string]*queue{}, list.New(), map[string]string{}
}

func (w *waiting) has(id string) bool { return w.of(id) != nil }

// of returns a session's queue, nil for none.
func (w *waiting) of(id string) *queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queues[id]
}

// created returns the session that waits to be created under a request key.
func (w *waiting) created(key string) (id string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, ok = w.keys[key]
	return id, ok
}

// first is the oldest write of a queue.
func (w *waiting) first(q *queue) *accepted {
	w.mu.Lock()
	defer w.mu.Unlock()
	return q.writes[0]
}

// earliest returns the earliest time that a write which waits speaks of, false
// when none waits.
func (w *waiting) earliest() (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.from, w.kept > 0
}

// head returns the next write of a queue to be replayed, and the one after it;
// nil for none.
func (w *waiting) head(q *queue) (a, then *accepted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.next < len(q.writes) {
		a = q.writes[q.next]
	}
	if q.next+1 < len(q.writes) {
		then = q.writes[q.next+1]
	}
	return a, then
}

// pull takes the queue that is to be drained next, nil for none.
func (w *waiting) pull() *queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.order.Front()
	if e == nil {
		return nil
	}
	q, _ := w.order.Remove(e).(*queue)
	return q
}

// later puts a queue that was pulled, and has not left, behind all others.
func (w *waiting) later(q *queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order.PushBack(q)
}

func (w *waiting) sessions() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queues)
}

func (w *waiting) stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := Stats{Waiting: w.count, Bytes: w.bytes, Drained: w.drained, Accepted: w.accepted}
	for _, q := range w.queues { // those that are being drained too
		if at := q.writes[min(q.next, len(q.writes)-1)].write.At; out.Oldest.IsZero() || at.Before(out.Oldest) {
			out.Oldest = at
		}
	}
	return out
}

// push takes a write into its session's queue, behind all others.
func (s *Store) push(a *accepted, done bool) {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count == 0 && !done {
		w.drained = 0
	}
	if at := speaksOf(a.write); w.kept == 0 || at.Before(w.from) {
		w.from = at
	}
	id := a.write.SessionID
	q := w.queues[id]
	if q == nil {
		q = &queue{id: id}
		w.order.PushBack(q)
		w.queues[id] = q
	}
	q.writes = append(q.writes, a)
	if c := a.write.Create; c != nil && c.RequestKey != "" {
		q.key = storage.RequestKey(c.Session, c.RequestKey)
		w.keys[q.key] = id
	}
	w.kept++
	w.bytes += a.size
	if done {
		q.next = len(q.writes)
	} else {
		w.count++
	}
	s.depth.Store(w.kept)
}

// replayed counts the head of a queue as done with.
func (s *Store) replayed(q *queue) {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	q.next++
	w.count--
	w.drained++
}

// leave lets a session go back to the store underneath when none of its writes
// is left. Its lock must be held, so that none is accepted meanwhile.
func (s *Store) leave(q *queue) bool {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.next < len(q.writes) {
		return false
	}
	delete(w.queues, q.id)
	if q.key != "" && w.keys[q.key] == q.id {
		delete(w.keys, q.key)
	}
	for _, a := range q.writes {
		w.bytes -= a.size
	}
	w.kept -= int64(len(q.writes))
	s.depth.Store(w.kept)
	return true
}

// room returns why no further write can be accepted, nil when one can.
func (s *Store) room() error {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes >= s.opts.MaxBytes || w.kept >= int64(s.opts.MaxWrites) {
		return errFull
	}
	return nil
}

// number gives out the next write's number.
func (w *waiting) number() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	w.accepted++
	return w.seq
}

// all returns the queues as they are, for a snapshot.
func (w *waiting) all() []queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]queue, 0, len(w.queues))
	for _, q := range w.queues {
		out = append(out, queue{id: q.id, writes: q.writes[:len(q.writes):len(q.writes)], next: q.next})
	}
	return out
}
