package journal

import (
	"container/list"
	"sync"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// queue are the writes of one session, the oldest first. Those that are done are
// kept, on disk too, until all are, so that what callers were told of the session
// can be built again.
type queue struct {
	id     string
	writes []*accepted
	// next is the first that is not done, left how many are not.
	next, left int
	// key is the request key that one of them creates the session under.
	key string
	// owner names the session's user, as ownerKey does; empty for none.
	owner string
	// from is the earliest time that one of the writes speaks of.
	from time.Time
	// deadline is the session's as the store underneath knows it, 0 where it was
	// created here. due is the deadline that it has there before the writes that wait,
	// but for its creation, are replayed.
	deadline, due int64

	// place is where the queue is in one of the orders, nil while it is drained
	// or parked.
	place  *list.Element
	urgent bool
	// failed: the store underneath did not answer the latest attempt, or the write
	// that the queue begins with.
	failed bool
	// parked: the head is refused for good, and the dead-letter queue is full.
	parked bool
	// waiters are the callers that wait until the queue is replayed; settled is
	// closed when it is, or when waiting is of no use. Nil where none waits.
	waiters int
	settled chan struct{}
}

// waiting are the sessions that have writes waiting.
type waiting struct {
	mu     sync.Mutex
	queues map[string]*queue
	// order holds the queues to be drained, urgent those of them that callers
	// wait for. A queue that is being drained or is parked is in neither.
	order, urgent *list.List
	keys          map[string]string
	owners        map[string]map[string]struct{}
	seq           int64
	count         int64 // writes to be replayed
	kept          int64 // writes in queues
	bytes         int64 // what those in queues take
	drained       int64
	accepted      int64
	// departures counts the sessions that have left; recent are the latest of them.
	departures int64
	recent     [recentMost]departure
	parked     int
	// serving: the latest replays reached the store underneath.
	serving bool
}

func (w *waiting) init() {
	w.queues, w.keys, w.owners = map[string]*queue{}, map[string]string{}, map[string]map[string]struct{}{}
	w.order, w.urgent = list.New(), list.New()
}

// ownerKey names a user of a project; NUL is in neither. Anonymous sessions have
// no owner.
func ownerKey(project, user string) string {
	if user == "" {
		return ""
	}
	return project + "\x00" + user
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

// ownedBy returns the sessions of a user that have writes waiting.
func (w *waiting) ownedBy(project, user string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	owned := w.owners[ownerKey(project, user)]
	out := make([]string, 0, len(owned))
	for id := range owned {
		out = append(out, id)
	}
	return out
}

// ids returns the sessions that have writes waiting.
func (w *waiting) ids() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]string, 0, len(w.queues))
	for id := range w.queues {
		out = append(out, id)
	}
	return out
}

// first is the oldest write of a queue.
func (w *waiting) first(q *queue) *accepted {
	w.mu.Lock()
	defer w.mu.Unlock()
	return q.writes[0]
}

// earliest returns the earliest time that a write which waits speaks of, false
// when none waits. Parked queues do not count: they wait for an operator, and
// must not delay every expiry until one comes.
func (w *waiting) earliest() (from time.Time, found bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range w.queues {
		if !q.parked && (!found || q.from.Before(from)) {
			from, found = q.from, true
		}
	}
	return from, found
}

// overdue says whether a session has writes waiting, and a deadline before the given
// one without them: were it expired now, they would be refused.
func (w *waiting) overdue(deadline time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range w.queues {
		if !q.parked && q.due > 0 && q.due < deadline.UnixMilli() {
			return true
		}
	}
	return false
}

// pull takes the queue that is to be drained next, nil for none: those that
// callers wait for come first.
func (w *waiting) pull() *queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.urgent.Front()
	if e == nil {
		e = w.order.Front()
	}
	if e == nil {
		return nil
	}
	q, _ := e.Value.(*queue)
	w.unplace(q)
	return q
}

func (w *waiting) unplace(q *queue) {
	switch {
	case q.place == nil:
	case q.urgent:
		w.urgent.Remove(q.place)
	default:
		w.order.Remove(q.place)
	}
	q.place, q.urgent = nil, false
}

// later puts a queue that was pulled, and has not left, behind all others, also
// where callers wait for it: one that cannot be replayed must not keep others from
// their turn. Failed says that the store underneath did not answer.
func (w *waiting) later(q *queue, failed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.failed = failed; failed {
		q.release()
	}
	q.place = w.order.PushBack(q)
}

func (w *waiting) sessions() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queues)
}

func (w *waiting) stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := Stats{Waiting: w.count, Bytes: w.bytes, Drained: w.drained, Accepted: w.accepted, Parked: w.parked}
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
	id := a.write.SessionID
	q := w.queues[id]
	if q == nil {
		q = &queue{id: id, failed: true, from: speaksOf(a.write), owner: ownerOf(a), deadline: lifetime.Millis(a.base.GetExpireTime())}
		if q.due = q.deadline; a.write.Create != nil {
			q.due = lifetime.Millis(a.write.Create.Session.GetExpireTime())
		}
		q.place = w.order.PushBack(q)
		w.queues[id] = q
		if q.owner != "" {
			if w.owners[q.owner] == nil {
				w.owners[q.owner] = map[string]struct{}{}
			}
			w.owners[q.owner][id] = struct{}{}
		}
	}
	if at := speaksOf(a.write); at.Before(q.from) {
		q.from = at
	}
	q.writes = append(q.writes, a)
	if c := a.write.Create; c != nil && c.RequestKey != "" {
		q.key = storage.RequestKey(c.Session, c.RequestKey)
		w.keys[q.key] = id
	}
	w.kept++
	w.bytes += a.size
	if a.done = done; done {
		q.advance()
	} else {
		w.count++
		q.left++
	}
	s.depth.Store(w.kept)
}

// ownerOf returns the owner of the session of a first write.
func ownerOf(a *accepted) string {
	if c := a.write.Create; c != nil {
		return ownerKey(c.Session.GetProject(), c.Session.GetUser())
	}
	return ownerKey(a.base.GetProject(), a.base.GetUser())
}

// leave lets a session go back to the store underneath when none of its writes
// is left. Its lock must be held, so that none is accepted meanwhile.
func (s *Store) leave(q *queue) bool {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.left > 0 {
		return false
	}
	delete(w.queues, q.id)
	if q.key != "" && w.keys[q.key] == q.id {
		delete(w.keys, q.key)
	}
	if owned := w.owners[q.owner]; owned != nil {
		if delete(owned, q.id); len(owned) == 0 {
			delete(w.owners, q.owner)
		}
	}
	for _, a := range q.writes {
		w.bytes -= a.size
	}
	w.kept -= int64(len(q.writes))
	w.recent[w.departures%recentMost] = departure{q.id, q.owner}
	w.departures++
	q.release()
	s.depth.Store(w.kept)
	return true
}

// room returns why no further write can be accepted, nil when one can.
func (s *Store) room() error {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.bytes < s.opts.MaxBytes && w.kept < int64(s.opts.MaxWrites):
		return nil
	case w.parked > 0:
		return errLettersFull
	default:
		return errFull
	}
}

// number gives out the next write's number.
func (w *waiting) number() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	w.accepted++
	return w.seq
}

// keptWrite is a write in a queue, for a snapshot.
type keptWrite struct {
	*accepted
	finished bool
}

// all returns the writes in queues as they are, those of a session in their order.
func (w *waiting) all() []keptWrite {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]keptWrite, 0, w.kept)
	for _, q := range w.queues {
		for _, a := range q.writes {
			out = append(out, keptWrite{a, a.done})
		}
	}
	return out
}
