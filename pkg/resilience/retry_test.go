package resilience_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

var (
	errFault  = errors.New("fault")
	errAnswer = errors.New("answer")
)

func worth(err error) bool { return errors.Is(err, errFault) }

func TestRetriesUntilItWorks(t *testing.T) {
	r := resilience.NewRetrier(resilience.RetryConfig{Delay: time.Microsecond})
	for _, c := range []struct {
		fails int
		with  error
		calls int
		ok    bool
	}{{0, errFault, 1, true}, {2, errFault, 3, true}, {5, errFault, 3, false}, {5, errAnswer, 1, false}} {
		calls := 0
		v, err := resilience.Retry(t.Context(), r, worth, func(ctx context.Context) (int, error) {
			if calls++; resilience.Attempt(ctx) != calls {
				t.Errorf("%+v: try %d is told as %d", c, calls, resilience.Attempt(ctx))
			}
			if calls <= c.fails {
				return 0, c.with
			}
			return 7, nil
		})
		if calls != c.calls || (err == nil) != c.ok || (c.ok && v != 7) || (!c.ok && !errors.Is(err, c.with)) {
			t.Errorf("%+v: %d calls, %d, %v", c, calls, v, err)
		}
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	r := resilience.NewRetrier(resilience.RetryConfig{Delay: time.Hour, Max: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	_, err := resilience.Retry(ctx, r, worth, func(context.Context) (int, error) {
		calls++
		time.AfterFunc(time.Millisecond, cancel)
		return 0, errFault
	})
	if calls != 1 || !errors.Is(err, errFault) {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// TestBudgetBoundsAnOutage: when nothing works, calls hardly multiply.
func TestBudgetBoundsAnOutage(t *testing.T) {
	r := resilience.NewRetrier(resilience.RetryConfig{Delay: time.Microsecond})
	var calls atomic.Int64
	var wg sync.WaitGroup
	const callers, each = 8, 250
	for range callers {
		wg.Go(func() {
			for range each {
				_, _ = resilience.Retry(t.Context(), r, worth, func(context.Context) (int, error) {
					calls.Add(1)
					return 0, errFault
				})
			}
		})
	}
	wg.Wait()
	if n := calls.Load(); n > callers*each+11 {
		t.Errorf("%d calls for %d, want at most 11 more", n, callers*each)
	}
	// It earns the budget back from what works.
	for range 100 {
		_, _ = resilience.Retry(t.Context(), r, worth, func(context.Context) (int, error) { return 0, nil })
	}
	tries := 0
	_, _ = resilience.Retry(t.Context(), r, worth, func(context.Context) (int, error) {
		tries++
		return 0, errFault
	})
	if tries != 3 {
		t.Errorf("%d tries after 100 good calls, want 3", tries)
	}
}

func TestLimitShedsAndRecovers(t *testing.T) {
	l := resilience.NewLimit("read", resilience.LimitConfig{Least: 4, Most: 8, Initial: 4})
	var held []interface{ Drop() }
	var shed *resilience.ShedError
	for range 100 {
		p, err := l.Acquire()
		if err != nil {
			if !errors.As(err, &shed) || shed.Class != "read" || shed.RetryAfter <= 0 || shed.Limit != 4 {
				t.Fatalf("got %v", err)
			}
			continue
		}
		held = append(held, p)
	}
	if in, limit := l.Load(); len(held) != 4 || in != 4 || limit != 4 {
		t.Errorf("%d of 100 admitted, %d in flight of %d, want 4", len(held), in, limit)
	}
	for _, p := range held {
		p.Drop()
	}
	p, err := l.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	p.Record()
}

func BenchmarkLimit(b *testing.B) {
	l := resilience.NewLimit("read", resilience.LimitConfig{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if p, err := l.Acquire(); err == nil {
				p.Record()
			}
		}
	})
}
