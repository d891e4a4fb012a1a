package resilience

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

// BreakerConfig says when breakers open and close; the zero value of each field
// is its default.
type BreakerConfig struct {
	// Failures in a row that open a breaker, 1 to 1,000; default 5. Not used
	// with a Rate.
	Failures int
	// Rate opens a breaker by the share of failures instead, over 0 and up to 1,
	// among at least MinCalls (default 20) within Window (default 10 s).
	Rate     float64
	MinCalls int
	Window   time.Duration
	// Delay is how long a breaker stays open before it lets probes through;
	// default 30 s.
	Delay time.Duration
	// Successes in half-open close it; default 3. As many probes run at a time.
	Successes int
}

// Validate returns what is out of range.
func (c BreakerConfig) Validate() error {
	switch {
	case c.Failures < 0 || c.Failures > 1000:
		return fmt.Errorf("breaker failures: got %d, want 1 to 1000", c.Failures)
	case c.Rate < 0 || c.Rate > 1:
		return fmt.Errorf("breaker failure rate: got %v, want over 0 and up to 1", c.Rate)
	case c.Successes < 0 || c.Successes > 1000:
		return fmt.Errorf("breaker successes: got %d, want 1 to 1000", c.Successes)
	case c.Delay < 0, c.Window < 0:
		return fmt.Errorf("breaker delay and window: got %v and %v, want more than 0", c.Delay, c.Window)
	}
	return nil
}

func (c BreakerConfig) withDefaults() BreakerConfig {
	set := func(field *int, v int) {
		if *field == 0 {
			*field = v
		}
	}
	set(&c.Failures, 5)
	set(&c.MinCalls, 20)
	set(&c.Successes, 3)
	if c.Window == 0 {
		c.Window = 10 * time.Second
	}
	if c.Delay == 0 {
		c.Delay = 30 * time.Second
	}
	return c
}

// State of a breaker.
type State uint8

// States.
const (
	Closed State = iota
	Open
	HalfOpen
)

// String names the state as failsafe-go does.
func (s State) String() string {
	switch s {
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	default:
		return "closed"
	}
}

func stateOf(s circuitbreaker.State) State {
	switch s {
	case circuitbreaker.OpenState:
		return Open
	case circuitbreaker.HalfOpenState:
		return HalfOpen
	default:
		return Closed
	}
}

// OpenError is a call that a breaker turned away.
type OpenError struct {
	// Breaker is its name.
	Breaker string
	// RetryAfter is when the breaker lets probes through, at least 1 ms.
	RetryAfter time.Duration
}

// Error names the breaker.
func (e *OpenError) Error() string {
	return fmt.Sprintf("circuit breaker %s is open, next probe in %v", e.Breaker, e.RetryAfter.Round(time.Millisecond))
}

// probeWait is what callers are told to wait while probes are under way.
const probeWait = 100 * time.Millisecond

// Breaker guards the calls of one class to one node. It uses failsafe-go by
// permits, which takes a tenth of the time of an executor and no allocation.
type Breaker struct {
	name, class, node string
	cfg               BreakerConfig
	inner             circuitbreaker.CircuitBreaker[any]
	changed           func(Change)

	// era counts state changes: a result that belongs to an earlier state is no
	// verdict on this one. Without it, calls from before an outage that end
	// while the breaker is half-open would close or open it, and add permits.
	era         atomic.Uint64
	forced      atomic.Bool
	failures    atomic.Int64
	trips       atomic.Int64
	lastFailure atomic.Int64 // Unix ns, 0 for never
}

// Change is a change of state.
type Change struct {
	Name, Class, Node string
	From, To          State
}

func newBreaker(class, node string, cfg BreakerConfig, changed func(Change)) *Breaker {
	b := &Breaker{name: Name(class, node), class: class, node: node, cfg: cfg, changed: changed}
	builder := circuitbreaker.NewBuilder[any]().WithDelay(cfg.Delay).WithSuccessThreshold(uint(cfg.Successes))
	if cfg.Rate > 0 {
		builder = builder.WithFailureRateThreshold(cfg.Rate, uint(cfg.MinCalls), cfg.Window)
	} else {
		builder = builder.WithFailureThreshold(uint(cfg.Failures))
	}
	b.inner = builder.OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
		b.era.Add(1)
		if e.NewState == circuitbreaker.OpenState {
			b.trips.Add(1)
		}
		if b.changed != nil {
			b.changed(Change{Name: b.name, Class: b.class, Node: b.node, From: stateOf(e.OldState), To: stateOf(e.NewState)})
		}
	}).Build()
	return b
}

// Name is how a breaker is called: class@node.
func Name(class, node string) string { return class + "@" + node }

// Permit is the right to make one call; Done must follow.
type Permit struct{ era uint64 }

// Acquire asks for the right to make a call. It returns an *OpenError while the
// breaker is open, and in half-open while its probes are under way.
func (b *Breaker) Acquire() (Permit, error) {
	if b.forced.Load() || !b.inner.TryAcquirePermit() {
		return Permit{}, &OpenError{Breaker: b.name, RetryAfter: b.retryAfter()}
	}
	return Permit{era: b.era.Load()}, nil
}

func (b *Breaker) retryAfter() time.Duration {
	if left := b.inner.RemainingDelay(); left > time.Millisecond {
		return left
	}
	if b.forced.Load() {
		return b.cfg.Delay
	}
	return probeWait
}

// Outcome is what a call says about the other side.
type Outcome uint8

const (
	// Success says that it answered. Refusals are answers too.
	Success Outcome = iota
	// Fault says that it could not do the work.
	Fault
	// Neutral says that the call failed, which says nothing about the other side, as on
	// a connection that was closed while it was idle.
	Neutral
)

// Done reports the outcome of a call. A neutral one is not counted, except while the
// breaker is half-open: its few permits must come back, and only a success may close
// it, so there it counts as a fault.
func (b *Breaker) Done(p Permit, o Outcome) {
	if p.era == b.era.Load() && o == Neutral && stateOf(b.inner.State()) == HalfOpen {
		o = Fault
	}
	switch o {
	case Fault:
		b.lastFailure.Store(time.Now().UnixNano())
		b.failures.Add(1)
	case Success:
		b.failures.Store(0)
	case Neutral:
		return
	}
	if p.era != b.era.Load() {
		return
	}
	if o == Fault {
		b.inner.RecordFailure()
	} else {
		b.inner.RecordSuccess()
	}
}

// Guard runs op under the breaker. A panic counts as a fault, and gives its
// permit back, before it goes on.
func (b *Breaker) Guard(op func() Outcome) error {
	p, err := b.Acquire()
	if err != nil {
		return err
	}
	o := Fault
	defer func() { b.Done(p, o) }()
	o = op()
	return nil
}

// Force sets the state. Open stays until the next Force; with Closed and
// HalfOpen the breaker goes on by itself from there.
func (b *Breaker) Force(s State) {
	b.forced.Store(s == Open)
	switch s {
	case Open:
		b.inner.Open()
	case HalfOpen:
		b.inner.HalfOpen()
	default:
		b.failures.Store(0)
		b.inner.Close()
	}
}

// Status describes a breaker.
type Status struct {
	Name, Class, Node string
	State             State
	// ProbeDue: it is open, its delay has passed, and the next call will be a
	// probe. failsafe-go changes state only when a call comes.
	ProbeDue bool
	// Forced: it was opened by hand and stays so.
	Forced bool
	// Failures in a row.
	Failures int
	// LastFailure is zero when it never failed.
	LastFailure time.Time
	Trips       int64
	// OpensAt failures in a row open it, 0 where it opens by rate; ClosesAt
	// successes in half-open close it.
	OpensAt, ClosesAt int
	// RetryAfter is the rest of the delay while it is open.
	RetryAfter time.Duration
}

// Status returns a breaker's state as of now.
func (b *Breaker) Status() Status {
	s := Status{
		Name: b.name, Class: b.class, Node: b.node, State: stateOf(b.inner.State()), Forced: b.forced.Load(),
		Failures: int(b.failures.Load()), Trips: b.trips.Load(), OpensAt: b.cfg.Failures, ClosesAt: b.cfg.Successes,
	}
	if b.cfg.Rate > 0 {
		s.OpensAt = 0
	}
	if at := b.lastFailure.Load(); at != 0 {
		s.LastFailure = time.Unix(0, at)
	}
	if s.State == Open {
		s.RetryAfter = b.inner.RemainingDelay()
		s.ProbeDue = s.RetryAfter == 0 && !s.Forced
	}
	return s
}
