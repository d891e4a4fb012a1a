package consumer

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// gate holds calls back for a while after one failed as a whole.
type gate struct {
	mu      sync.Mutex
	backoff backoff
	until   int64
}

func newGate(cfg Config) *gate {
	return &gate{backoff: backoff{least: cfg.BackoffMin, most: cfg.BackoffMax}}
}

// opensAt is the time in Unix ms from which calls may be made.
func (g *gate) opensAt() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until
}

func (g *gate) failed(now int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Calls that ran side by side and failed together are one failure.
	if now >= g.until {
		g.until = now + max(1, g.backoff.pause().Milliseconds())
	}
}

func (g *gate) succeeded() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.backoff.reset()
	g.until = 0
}

// flushLoop makes the calls that are due until ctx ends, then, for at most the
// grace, those for all that is pending.
func (c *Consumer) flushLoop(ctx, working context.Context) {
	calls, cancel := context.WithCancel(working)
	f := &flusher{
		Consumer: c, calls: calls,
		reporting: make(chan struct{}, c.cfg.Parallel), asking: make(chan struct{}, c.cfg.Parallel),
	}
	// In this order: what outlasts the grace is cancelled, then awaited.
	defer f.wg.Wait()
	defer cancel()

	for ctx.Err() == nil {
		f.await(ctx.Done(), f.dispatch(false))
	}
	grace, stop := context.WithTimeout(calls, c.cfg.Grace)
	defer stop()
	for c.tracker.Busy() {
		if grace.Err() != nil {
			s := c.tracker.Stats()
			c.log.WarnContext(ctx, "stopping with activity not reported; it will be delivered again", slog.Int("sessions", s.Pending))
			return
		}
		f.await(grace.Done(), f.dispatch(true))
	}
}

// flusher is the state of flushLoop.
type flusher struct {
	*Consumer
	//nolint:containedctx // the context of the calls that flushLoop starts and awaits
	calls             context.Context
	wg                sync.WaitGroup
	reporting, asking chan struct{}
}

// never is a wait without an end of its own.
const never = time.Duration(-1)

// await waits for a wake-up, done, or the time, and returns.
func (f *flusher) await(done <-chan struct{}, wait time.Duration) {
	var timeout <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-done:
	case <-f.wakeFlush:
	case <-timeout:
	}
}

// dispatch starts the calls that can be made now, and returns how long to wait
// for the next; the end of a call wakes the loop, too.
func (f *flusher) dispatch(all bool) time.Duration {
	now := f.nowMillis()
	// Coalescing gives way under load: what takes up the window is reported,
	// so that it can be acknowledged.
	all = all || f.tracker.Outstanding() > f.cfg.Window/2 || f.tracker.Full()
	wait := f.start(f.reporting, f.reports, now, all, f.tracker.NextDue, func() func() {
		b := f.tracker.Due(now, f.cfg.Batch, all)
		if len(b.Items) == 0 {
			return nil
		}
		return func() { f.report(f.calls, b) }
	})
	ask := f.start(f.asking, f.questions, now, false, f.tracker.NextUnresolved, func() func() {
		ids := f.tracker.Unresolved(now, f.cfg.Batch)
		if len(ids) == 0 {
			return nil
		}
		return func() { f.ask(f.calls, ids) }
	})
	if wait == never || (ask != never && ask < wait) {
		wait = ask
	}
	return wait
}

// start runs the calls that next gives while there are slots and the gate is
// open. It returns how long to wait for the next one.
func (f *flusher) start(slots chan struct{}, g *gate, now int64, all bool, due func() (int64, bool), next func() func()) time.Duration {
	for g.opensAt() <= now {
		select {
		case slots <- struct{}{}:
		default:
			return never // a slot that becomes free wakes the loop
		}
		call := next()
		if call == nil {
			<-slots
			break
		}
		f.wg.Go(func() {
			defer func() {
				<-slots
				wake(f.wakeFlush)
				wake(f.wakeSend)
			}()
			call()
		})
	}
	opens := g.opensAt()
	if all && opens > now {
		return time.Duration(opens-now) * time.Millisecond
	}
	at, ok := due()
	if !ok {
		return never
	}
	return time.Duration(max(0, max(at, opens)-now)) * time.Millisecond
}
