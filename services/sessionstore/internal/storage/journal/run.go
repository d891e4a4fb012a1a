package journal

import "github.com/livinguniverse/stoker/services/sessionstore/internal/storage"

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
