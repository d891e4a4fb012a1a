package redis

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// handClock is a clock whose monotonic time and own clock the test moves.
type handClock struct {
	*clock
	mono time.Duration
	wall time.Time
}

func newHandClock() *handClock {
	h := &handClock{wall: time.UnixMilli(1_800_000_000_000)}
	h.clock = &clock{own: func() time.Time { return h.wall }, elapsed: func() time.Duration { return h.mono }}
	return h
}

// pass lets time pass, for the process's own clock as well.
func (h *handClock) pass(d time.Duration) {
	h.mono += d
	h.wall = h.wall.Add(d)
}

// measure makes a round trip that takes out and back, to a server whose clock is
// ahead of monotonic time by offset.
func (h *handClock) measure(offset time.Time, out, back time.Duration) time.Duration {
	m := measurement{sent: h.mono}
	h.pass(out)
	m.at = offset.Add(h.mono).Truncate(time.Microsecond)
	h.pass(back)
	m.received = h.mono
	return h.correct(m)
}

func TestClockFollowsRedis(t *testing.T) {
	const ms = time.Millisecond
	start := time.UnixMilli(1_700_000_000_000)
	h := newHandClock()
	if got := h.now(); !got.Equal(h.wall) {
		t.Errorf("before the first measurement: %v, want the own clock's %v", got, h.wall)
	}
	if d, ok := h.difference(); ok {
		t.Errorf("difference before the first measurement: %v", d)
	}
	off := func() time.Duration { return h.now().Sub(start.Add(h.mono)) }
	within := func(what string, bound time.Duration) {
		t.Helper()
		if off().Abs() > bound {
			t.Errorf("%s: off by %v, want at most %v", what, off(), bound)
		}
	}
	if jump := h.measure(start, 180*ms, 20*ms); jump != 0 {
		t.Errorf("the first measurement: jump %v", jump)
	}
	within("after a slow, lopsided round trip", 100*ms)
	h.measure(start, ms, ms)
	if before := off(); before < 0 || before > 80*ms+ms {
		t.Errorf("just after a correction backwards: off by %v, want to stand still where it was", before)
	}
	h.pass(time.Second)
	within("after a fast one", 2*ms)
	good := off()
	for range 5 {
		h.measure(start, 2*ms, 300*ms)
		h.measure(start, 300*ms, 2*ms)
	}
	if off() != good {
		t.Errorf("slow round trips moved it from %v to %v", good, off())
	}
	h.wall = h.wall.Add(time.Hour)
	within("after the own clock has jumped", 2*ms)
	if d, ok := h.difference(); !ok || d.Round(time.Second) != h.wall.Sub(start.Add(h.mono)).Round(time.Second) {
		t.Errorf("difference: %v %v", d, ok)
	}
	for _, by := range []time.Duration{time.Hour, -2 * time.Hour} {
		start = start.Add(by)
		if jump := h.measure(start, 100*ms, 100*ms); (jump - by).Abs() > 200*ms {
			t.Errorf("jump by %v: got %v", by, jump)
		}
		within("at once after a jump", 100*ms)
	}
	h.measure(start, 0, 0)
	start = start.Add(-500 * ms)
	before := h.now()
	if jump := h.measure(start, 0, 0); jump != 0 {
		t.Errorf("a small correction is called a jump: %v", jump)
	}
	if now := h.now(); now.Before(before) {
		t.Errorf("it has run backwards by %v", before.Sub(now))
	}
	h.pass(499 * ms)
	if now := h.now(); now.Sub(before) > ms {
		t.Errorf("it has gone on by %v, though Redis is behind it", now.Sub(before))
	}
	h.pass(time.Second)
	within("after Redis has caught up", ms)
}

// TestClockKeepsItsPromises: with any round trips and a drift as of bad quartz, the
// clock is off by no more than the last round trip and the drift since, never runs
// backwards, and no jump is reported where there is none.
func TestClockKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, drift := newHandClock(), rapid.Int64Range(-200, 200).Draw(t, "drift in ppm")
		start := time.UnixMilli(1_700_000_000_000)
		truth := func() time.Time { return start.Add(h.mono + h.mono*time.Duration(drift)/1_000_000) }
		var last time.Time
		for range rapid.IntRange(1, 50).Draw(t, "measurements") {
			out := time.Duration(rapid.Int64Range(0, 250_000).Draw(t, "out")) * time.Microsecond
			back := time.Duration(rapid.Int64Range(0, 250_000).Draw(t, "back")) * time.Microsecond
			if jump := h.measure(truth().Add(-h.mono), out, back); jump != 0 {
				t.Fatalf("jump by %v", jump)
			}
			// A correction backwards may make it stand still for as long as it was wrong.
			for _, d := range []time.Duration{0, 600 * time.Millisecond, 400 * time.Millisecond} {
				h.pass(d)
				now := h.now()
				if now.Before(last) {
					t.Fatalf("it ran backwards from %v to %v", last, now)
				}
				last = now
			}
			if off := last.Sub(truth()); off.Abs() > out+back+2*time.Millisecond {
				t.Fatalf("off by %v after a round trip of %v", off, out+back)
			}
		}
	})
}

// TestClockIsMonotonicAmongCallers corrects the clock back and forth while others
// read it.
func TestClockIsMonotonicAmongCallers(t *testing.T) {
	c := newClock(time.Now)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	corrected := 0
	measure := func(off time.Duration) {
		m := measurement{sent: c.elapsed()}
		m.at = time.UnixMilli(1_700_000_000_000).Add(m.sent + off)
		m.received = c.elapsed()
		before := c.offset
		c.correct(m)
		if c.offset != before {
			corrected++
		}
	}
	measure(0)
	for range 4 {
		readers.Go(func() {
			last := c.now()
			for {
				select {
				case <-stop:
					return
				default:
				}
				now := c.now()
				if now.Before(last) {
					t.Errorf("from %v back to %v", last, now)
					return
				}
				last = now
			}
		})
	}
	for n := range 2000 {
		measure(time.Duration(n%2) * 100 * time.Microsecond)
	}
	close(stop)
	readers.Wait()
	if corrected < 1000 {
		t.Errorf("corrected only %d times", corrected)
	}
}

func BenchmarkClock(b *testing.B) {
	c := newClock(time.Now)
	c.correct(measurement{at: time.Now()})
	for b.Loop() {
		c.now()
	}
}
