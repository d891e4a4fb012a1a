package resilience

import (
	"fmt"
	"time"

	"github.com/failsafe-go/failsafe-go/adaptivelimiter"
)

// LimitConfig bounds how many calls of a class run at a time; the zero value of
// each field is its default.
type LimitConfig struct {
	// Least and Most bound the limit, which begins at Initial; default 512, 8,192
	// and 1,024.
	Least, Most, Initial int
}

// ShedError is a call that was turned away because too many are under way.
type ShedError struct {
	// Class of the call, and the limit at the time.
	Class string
	Limit int
	// RetryAfter is how long to wait.
	RetryAfter time.Duration
}

// Error names class and limit.
func (e *ShedError) Error() string {
	return fmt.Sprintf("%d calls of class %s are under way, which is as many as are answered in good time", e.Limit, e.Class)
}

const shedWait = 200 * time.Millisecond

// Limit turns calls away before their number makes all of them slow. It follows
// the time that calls take (after Netflix's concurrency-limits; see
// failsafe-go's adaptivelimiter).
type Limit struct {
	class string
	inner adaptivelimiter.AdaptiveLimiter[any]
}

// NewLimit returns the limit of a class.
func NewLimit(class string, cfg LimitConfig) *Limit {
	if cfg.Least == 0 {
		cfg.Least = 512
	}
	if cfg.Most == 0 {
		cfg.Most = 8192
	}
	if cfg.Initial == 0 {
		cfg.Initial = max(cfg.Least, min(1024, cfg.Most))
	}
	return &Limit{
		class: class,
		inner: adaptivelimiter.NewBuilder[any]().WithLimits(uint(cfg.Least), uint(cfg.Most), uint(cfg.Initial)).Build(),
	}
}

// Acquire asks to make a call; it returns a *ShedError when there are too many.
// The permit's Record must follow, or Drop where the time that the call took
// says nothing.
func (l *Limit) Acquire() (adaptivelimiter.Permit, error) {
	p, ok := l.inner.TryAcquirePermit()
	if !ok {
		return nil, &ShedError{Class: l.class, Limit: l.inner.Limit(), RetryAfter: shedWait}
	}
	return p, nil
}

// Load returns how many calls are under way, and the limit.
func (l *Limit) Load() (inFlight, limit int) { return l.inner.Inflight(), l.inner.Limit() }
