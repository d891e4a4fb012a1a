package tracker

import "container/heap"

// listName says which list a session is in.
type listName uint8

const (
	inNone listName = iota
	// inIdle: nothing waits; the one idle for longest first.
	inIdle
	// inUnresolved: to be asked for.
	inUnresolved
	// inAskAgain: to be asked for again, at its hold time.
	inAskAgain
	// inUncertain: reported once as not found; to be asked for again at its
	// hold time.
	inUncertain
)

// sessionList is a doubly linked list through the sessions themselves.
type sessionList struct {
	name        listName
	front, back *session
	size        int
}

func (l *sessionList) push(s *session) {
	s.in, s.prev, s.next = l.name, l.back, nil
	if l.back == nil {
		l.front = s
	} else {
		l.back.next = s
	}
	l.back = s
	l.size++
}

func (l *sessionList) remove(s *session) {
	if s.prev == nil {
		l.front = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		l.back = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.in, s.prev, s.next = inNone, nil, nil
	l.size--
}

// queueName says where a delivery waits.
type queueName uint8

const (
	// nowhere: for the answer to the one in flight.
	nowhere queueName = iota
	// inReady: due at once.
	inReady
	// inWaiting: due when its flush interval is over.
	inWaiting
	// inTimed: due at a time of its own.
	inTimed
	// inRetry: the store could not answer; due again after a pause.
	inRetry
	// inRecheck: the store reported NOT_FOUND once; due again after a pause.
	inRecheck
)

// deliveryList is a doubly linked list through the deliveries themselves.
type deliveryList struct {
	name        queueName
	front, back *delivery
}

func (l *deliveryList) push(d *delivery) {
	d.where, d.prev, d.next = l.name, l.back, nil
	if l.back == nil {
		l.front = d
	} else {
		l.back.next = d
	}
	l.back = d
}

func (l *deliveryList) remove(d *delivery) {
	if d.prev == nil {
		l.front = d.next
	} else {
		d.prev.next = d.next
	}
	if d.next == nil {
		l.back = d.prev
	} else {
		d.next.prev = d.prev
	}
	d.where, d.prev, d.next = nowhere, nil, nil
}

// dueHeap orders deliveries by due time.
type dueHeap []*delivery

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is for container/heap.
func (h *dueHeap) Push(x any) {
	d, _ := x.(*delivery)
	d.index = len(*h)
	*h = append(*h, d)
}

// Pop is for container/heap.
func (h *dueHeap) Pop() any {
	old := *h
	n := len(old) - 1
	d := old[n]
	old[n] = nil
	*h = old[:n]
	return d
}

func (h *dueHeap) add(d *delivery) {
	d.where = inTimed
	heap.Push(h, d)
}

func (h *dueHeap) remove(d *delivery) {
	heap.Remove(h, d.index)
	d.where = nowhere
}
