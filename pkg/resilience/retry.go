package resilience

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// RetryConfig says how failed calls are tried again; the zero value of each
// field is its default.
type RetryConfig struct {
	// Attempts are the calls in all, 1 to 10; default 3.
	Attempts int
	// Delay before the first retry, doubled for each further one up to Max, and
	// between half and the whole of that by chance; default 10 ms and 200 ms.
	Delay, Max time.Duration
	// Budget is how many retries there may be for each call that works; default
	// 0.1. When nothing works, retries come to an end.
	Budget float64
	// Burst is how many retries may come at once after a quiet time, 1 or more;
	// default 10.
	Burst int
}

// Retrier tries failed calls again, within a budget that all its callers share,
// so that an outage is met with hardly more calls than usual (Google SRE book,
// chapter 22; the token bucket is that of gRPC's retry throttling, A6).
type Retrier struct {
	cfg    RetryConfig
	tokens atomic.Int64 // thousandths of a retry, as are most and earn
	most   int64
	earn   int64
}

// NewRetrier returns a retrier with a full budget.
func NewRetrier(cfg RetryConfig) *Retrier {
	if cfg.Attempts == 0 {
		cfg.Attempts = 3
	}
	if cfg.Delay == 0 {
		cfg.Delay = 10 * time.Millisecond
	}
	if cfg.Max == 0 {
		cfg.Max = 200 * time.Millisecond
	}
	if cfg.Budget == 0 {
		cfg.Budget = 0.1
	}
	if cfg.Burst == 0 {
		cfg.Burst = 10
	}
	r := &Retrier{cfg: cfg, most: int64(cfg.Burst) * 1000, earn: int64(cfg.Budget * 1000)}
	r.tokens.Store(r.most)
	return r
}

// worked earns a part of a retry.
func (r *Retrier) worked() {
	if r.tokens.Load() < r.most {
		r.tokens.Add(r.earn) // may go a little beyond
	}
}

// spend takes a retry out of the budget.
func (r *Retrier) spend() bool {
	for {
		have := r.tokens.Load()
		if have < 1000 {
			return false
		}
		if r.tokens.CompareAndSwap(have, have-1000) {
			return true
		}
	}
}

type attemptKey struct{}

// Attempt returns which try of a call this is, by the context that Retry has
// given it: 1 for the first, and outside of any.
func Attempt(ctx context.Context) int {
	if n, ok := ctx.Value(attemptKey{}).(int); ok {
		return n
	}
	return 1
}

// isFree says whether the first retry after an error costs nothing: the error, or one
// that it wraps, has a method FreeRetry that returns true. It is for failures that say
// nothing about the other side, such as of a connection that was closed while idle.
func isFree(err error) bool {
	var free interface{ FreeRetry() bool }
	return errors.As(err, &free) && free.FreeRetry()
}

// Retry calls op until it works, its error is not worth a retry, or attempts,
// budget or ctx come to an end; it returns what the last call did. op must be
// one that may be applied twice.
func Retry[T any](ctx context.Context, r *Retrier, worth func(error) bool, op func(ctx context.Context) (T, error)) (T, error) {
	delay, try := r.cfg.Delay, ctx
	for attempt := 1; ; attempt++ {
		v, err := op(try)
		if err == nil {
			r.worked()
			return v, nil
		}
		if attempt >= r.cfg.Attempts || !worth(err) || ctx.Err() != nil {
			return v, err
		}
		if free := attempt == 1 && isFree(err); !free && !r.spend() {
			return v, err
		}
		t := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return v, err
		}
		delay, try = min(2*delay, r.cfg.Max), context.WithValue(ctx, attemptKey{}, attempt+1)
	}
}
