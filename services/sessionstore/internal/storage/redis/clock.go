package redis

import (
	"sync"
	"time"
)

// clock tells the time by which Redis judges deadlines. Every layer of the store
// uses it, so that what a process calls expired is what Redis calls expired, however
// wrong the clock of the process is.
//
// It is the time of Redis at the last correction plus the monotonic time since: what
// becomes of the process's own clock afterwards changes nothing. Until the first
// measurement it is the process's own clock.
//
// A measurement proves bounds: Redis read its clock between the moments at which the
// command was sent and its reply was received. The clock is corrected only where it is
// outside of them, and to the nearer bound, so a slow round trip cannot spoil what a
// fast one has found, and fast ones do not make it tremble.
type clock struct {
	own     func() time.Time
	elapsed func() time.Duration

	mu       sync.RWMutex
	measured bool
	// offset is what the time of Redis is ahead of elapsed, in nanoseconds; floor is
	// the latest time that was returned before a correction. doubt is by how much
	// offset may have been wrong at the last measurement.
	offset, floor, doubt int64
}

// clockJump is the least correction that is a jump of the clock of Redis. The clock
// follows a jump at once, backwards too. After a smaller correction backwards it
// stands still until the time of Redis has come to where it stands.
const clockJump = time.Second

func newClock(own func() time.Time) *clock {
	start := time.Now() //nolint:forbidigo // only its monotonic part is used
	return &clock{own: own, elapsed: func() time.Duration { return time.Since(start) }}
}

// now returns the time of Redis.
func (c *clock) now() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.measured {
		return c.own()
	}
	return time.Unix(0, c.at(c.elapsed()))
}

func (c *clock) at(elapsed time.Duration) int64 { return max(c.offset+int64(elapsed), c.floor) }

// difference returns by how much the process's own clock is ahead; false before the
// first measurement.
func (c *clock) difference() (time.Duration, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.measured {
		return 0, false
	}
	return c.own().Sub(time.Unix(0, c.at(c.elapsed()))), true
}

// measurement is the reply to TIME, and the elapsed times at which the command was
// sent and the reply was received.
type measurement struct {
	sent, received time.Duration
	at             time.Time
}

// bounds returns the least and the greatest offset that agree with a measurement.
func (m measurement) bounds() (low, high int64) {
	const resolution = int64(time.Microsecond) // of TIME
	at := m.at.UnixNano()
	return at - int64(m.received), at + resolution - int64(m.sent)
}

// correct makes the clock agree with a measurement. It returns how far the clock of
// Redis has jumped since the one before, 0 where it has not.
func (c *clock) correct(m measurement) (jump time.Duration) {
	low, high := m.bounds()
	c.mu.Lock()
	defer c.mu.Unlock()
	half := (high - low) / 2
	moved := min(max(c.offset, low), high) - c.offset
	least := int64(clockJump) + c.doubt
	switch {
	case !c.measured:
		c.measured, c.offset, c.doubt = true, low+half, half
	case moved >= least, moved <= -least:
		c.offset, c.floor, c.doubt = low+half, 0, half
		return time.Duration(moved)
	case moved != 0:
		c.floor = c.at(c.elapsed())
		c.offset, c.doubt = c.offset+moved, min(c.doubt, high-low)
	default:
		c.doubt = min(c.doubt, high-low)
	}
	return 0
}

// apart returns by how much the server of a measurement is ahead of the clock, as
// far as that is certain.
func (c *clock) apart(m measurement) time.Duration {
	low, high := m.bounds()
	c.mu.RLock()
	defer c.mu.RUnlock()
	return time.Duration(min(max(c.offset, low), high) - c.offset)
}
