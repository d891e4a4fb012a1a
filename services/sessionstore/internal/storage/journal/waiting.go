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
	// created here. extended: one of the writes has moved it.
	deadline int64
	extended bool

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

// recentMost is how many sessions that have left are remembered.
const recentMost = 4096

// departure is a session that has left, and its owner.
type departure struct{ id, owner string }

// left returns how many sessions have left so far.
func (w *waiting) left() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.departures
}

// departed are sessions that have left, with their owners. All says that others, which
// are too many to know, have left as well.
type departed struct {
	all    bool
	owners map[string]string
}

func (d departed) has(id string) bool {
	_, ok := d.owners[id]
	return ok || d.all
}

// leftSince returns the sessions that have left since left returned before.
func (w *waiting) leftSince(before int64) departed {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := departed{all: w.departures-before > recentMost, owners: map[string]string{}}
	for n := max(before, w.departures-recentMost); n < w.departures; n++ {
		d := w.recent[n%recentMost]
		out.owners[d.id] = d.owner
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

// overdue says whether a session has an acknowledged extension waiting, and had a
// deadline before the given one without it.
func (w *waiting) overdue(deadline time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range w.queues {
		if q.extended && !q.parked && q.deadline > 0 && q.deadline < deadline.UnixMilli() {
			return true
		}
	}
	return false
}

// Bounds of a run of writes that are replayed as one.
const (
	runEvents = 500
	runBytes  = 512 << 10
	// runScan is how many writes are looked through for one.
	runScan = 2000
	// runUpdates is how many updates are replayed as one: after a crash they come
	// again, and a session must remember all of them.
	runUpdates = storage.MaxWriteIDs / 2
)

// head returns the next writes of a queue to be replayed, and whether others are left
// behind them; none when all are done. There are several only where all append
// events, or all update the session, which can be replayed as one: at most as many as
// given. Updates leave no trace in the log, so events may overtake them.
func (w *waiting) head(q *queue, most int) (run []*accepted, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events, bytes := 0, int64(0)
	for _, a := range q.writes[q.next:min(len(q.writes), q.next+runScan)] {
		switch {
		case a.done, a.write.Update != nil:
			continue
		case a.write.Append == nil:
		case len(run) > 0 && (len(run) == most || events+len(a.write.Append) > runEvents || bytes+a.size > runBytes):
		default:
			events, bytes = events+len(a.write.Append), bytes+a.size
			run = append(run, a)
			continue
		}
		break
	}
	if len(run) == 0 && q.left > 0 {
		run = append(run, q.writes[q.next])
	}
	if len(run) == 1 && run[0].write.Update != nil {
		for _, a := range q.writes[q.next+1:] {
			if a.done {
				continue
			}
			if a.write.Update == nil || len(run) >= min(most, runUpdates) || bytes+a.size > runBytes {
				break
			}
			bytes += a.size
			run = append(run, a)
		}
	}
	return run, q.left > len(run)
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

// park sets a queue that was pulled aside until unpark.
func (w *waiting) park(q *queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q.parked = true
	w.parked++
	q.release()
}

// unpark puts every parked queue back in order, and returns whether there was one.
func (w *waiting) unpark() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parked == 0 {
		return false
	}
	for _, q := range w.queues {
		if q.parked {
			q.parked, q.place = false, w.order.PushBack(q)
		}
	}
	w.parked = 0
	return true
}

// release wakes the callers that wait for the queue.
func (q *queue) release() {
	if q.settled != nil {
		close(q.settled)
		q.settled = nil
	}
}

// setServing says whether replays reach the store underneath. When they do again,
// no queue counts as failed any more.
func (w *waiting) setServing(serving bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.serving == serving {
		return
	}
	w.serving = serving
	for _, q := range w.queues {
		if q.failed = !serving; !serving {
			q.release()
		}
	}
}

// await registers a caller that waits until a session's writes are replayed, whose
// turn is next then. It returns a channel that is closed when they are, or when
// waiting is of no use, and how to leave; nil where there is nothing to wait for.
func (w *waiting) await(id string) (settled <-chan struct{}, leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queues[id]
	if q == nil || !w.serving || q.failed || q.parked {
		return nil, nil
	}
	if q.settled == nil {
		q.settled = make(chan struct{})
	}
	q.waiters++
	if q.place != nil && !q.urgent {
		w.unplace(q)
		q.place, q.urgent = w.urgent.PushBack(q), true
	}
	return q.settled, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if q.waiters--; q.waiters == 0 && q.urgent {
			w.unplace(q)
			q.place = w.order.PushFront(q)
		}
	}
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
	q.extended = q.extended || extends(a.write)
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

// replayed counts writes of a queue as done with.
func (s *Store) replayed(q *queue, run []*accepted) {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range run {
		a.done = true
	}
	q.left -= len(run)
	q.advance()
	q.failed = false
	w.count -= int64(len(run))
	w.drained += int64(len(run))
}

func (q *queue) advance() {
	for q.next < len(q.writes) && q.writes[q.next].done {
		q.next++
	}
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
