package journal

// park sets a queue that was pulled aside until unpark.
func (w *waiting) park(q *queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q.parked = true
	w.parked++
	q.release()
}

// isParked says whether a session's writes wait for room among the dead letters.
func (w *waiting) isParked(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queues[id]
	return q != nil && q.parked
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
