package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// op makes one call of a worker: its number, from 0, and the call's.
type op func(ctx context.Context, worker, n int) error

// load is what callers saw.
type load struct {
	Calls   int
	Errors  int
	First   error
	Elapsed time.Duration
	// Sorted are the times of the calls that worked.
	Sorted []time.Duration
}

const (
	// callSlack is how long past the end of a phase a call may take before it is
	// given up.
	callSlack = 10 * time.Second
	// hopeless is how many calls in a row may fail before a caller leaves.
	hopeless = 50
)

// drive makes callers call without pause for d, and once at least. Each waits
// for its answer before it calls again.
func drive(ctx context.Context, callers int, d time.Duration, do op) load {
	ctx, cancel := context.WithTimeout(ctx, d+callSlack)
	defer cancel()
	results := make([]load, callers)
	begin := time.Now()
	end := begin.Add(d)
	var wg sync.WaitGroup
	for w := range callers {
		wg.Go(func() { results[w] = drivenBy(ctx, w, end, do) })
	}
	wg.Wait()
	sum := load{Elapsed: time.Since(begin)}
	for _, r := range results {
		sum.Calls += r.Calls
		sum.Errors += r.Errors
		if sum.First == nil {
			sum.First = r.First
		}
		sum.Sorted = append(sum.Sorted, r.Sorted...)
	}
	slices.Sort(sum.Sorted)
	return sum
}

// drivenBy is one caller.
func drivenBy(ctx context.Context, worker int, end time.Time, do op) load {
	var l load
	failed := 0
	for at := time.Now(); (l.Calls == 0 || at.Before(end)) && failed < hopeless && ctx.Err() == nil; l.Calls++ {
		err := do(ctx, worker, l.Calls)
		now := time.Now()
		if err != nil {
			failed++
			l.Errors++
			if l.First == nil {
				l.First = fmt.Errorf("call %d of caller %d: %w", l.Calls, worker, err)
			}
		} else {
			failed = 0
			l.Sorted = append(l.Sorted, now.Sub(at))
		}
		at = now
	}
	return l
}
