package redis

import (
	"sync"
	"sync/atomic"
	"time"
)

// starvation measures for how long this process did not get to run: a goroutine
// sleeps for a short time again and again, and adds up by how much it woke late. The
// deadlines of round trips are extended by that (see link), so that a busy machine is
// not mistaken for a slow Redis.
type starvation struct {
	late atomic.Int64 // nanoseconds, whole sleeps
	next atomic.Int64 // when the current sleep should end, Unix nanoseconds
	// before is what late was one to two seconds ago.
	before atomic.Int64

	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
}

const (
	// starvationStep is how long each sleep is: a trade between the processor time
	// it takes and how exact it is.
	starvationStep = 20 * time.Millisecond
	// starvationSlack is lateness that is normal for a timer.
	starvationSlack = 10 * time.Millisecond
)

// measureStarvation starts measuring; close ends it.
func measureStarvation() *starvation {
	s := &starvation{stop: make(chan struct{})}
	s.next.Store(time.Now().Add(starvationStep).UnixNano())
	s.done.Go(s.run)
	return s
}

func (s *starvation) run() {
	timer := time.NewTimer(starvationStep)
	defer timer.Stop()
	begun, between := time.Now(), int64(0)
	for {
		select {
		case <-s.stop:
			return
		case <-timer.C:
		}
		now := time.Now()
		if now.Sub(begun) >= time.Second {
			s.before.Store(between)
			begun, between = now, s.late.Load()
		}
		if late := now.UnixNano() - s.next.Load() - int64(starvationSlack); late > 0 {
			s.late.Add(late)
		}
		s.next.Store(now.Add(starvationStep).UnixNano())
		timer.Reset(starvationStep)
	}
}

// total is for how long the process did not get to run since the start, with what it
// is late by now. Two totals are compared; a single one means nothing.
func (s *starvation) total() time.Duration {
	if s == nil {
		return 0
	}
	late := s.late.Load()
	if now := time.Now().UnixNano() - s.next.Load() - int64(starvationSlack); now > 0 {
		late += now
	}
	return time.Duration(late)
}

// since is for how long the process did not get to run since a total, and at least what
// that was of late, up to most.
func (s *starvation) since(total, most time.Duration) time.Duration {
	return max(s.total()-total, s.recent(most))
}

// recent is for how long the process did not get to run in the last one or two seconds,
// up to most: where this process has to wait for a processor, a Redis on the same machine
// has to as well, if not at the same moments.
func (s *starvation) recent(most time.Duration) time.Duration {
	if s == nil {
		return 0
	}
	return min(s.total()-time.Duration(s.before.Load()), most)
}

func (s *starvation) close() {
	s.once.Do(func() { close(s.stop) })
	s.done.Wait()
}
