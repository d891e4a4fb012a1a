package redis_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
)

// pipelines is a hook that sees batches only.
type pipelines func(cmds []goredis.Cmder, next func() error) error

func (pipelines) DialHook(next goredis.DialHook) goredis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (pipelines) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook { return next }

func (p pipelines) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		// Connections introduce themselves, too.
		if !slices.ContainsFunc(cmds, func(c goredis.Cmder) bool { return c.Name() == "evalsha" }) {
			return next(ctx, cmds)
		}
		return p(cmds, func() error { return next(ctx, cmds) })
	}
}

// patient opens a store whose round trips are not a matter of time, and a
// session in it. All its scripts are known to the server.
func patient(t *testing.T) (*redis.Store, storage.Activity) {
	t.Helper()
	s := open(t, redistest.Start(t).URL(), func(o *redis.Options) { o.Timeout = time.Minute })
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	a := storage.Activity{SessionID: id, Kind: "input"}
	if _, err := s.Extend(t.Context(), []storage.Activity{a}); err != nil {
		t.Fatal(err)
	}
	return s, a
}

func failed(results []storage.ExtendResult, err error) error {
	for _, r := range results {
		err = errors.Join(err, r.Err)
	}
	return err
}

// TestBatchesAreBoundedTogether: however many callers there are with however
// large batches, a server never has more under way than it works off well
// within the timeout. Otherwise load alone would make every round trip time
// out, and open the breaker of a server that is well.
func TestBatchesAreBoundedTogether(t *testing.T) {
	const callers, items = 32, 5 * redis.BatchMost / 2
	s, a := patient(t)
	var mu sync.Mutex
	underWay, most, total := 0, 0, 0
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		underWay += n
		most, total = max(most, underWay), total+max(0, n)
	}
	s.WatchWrites(pipelines(func(cmds []goredis.Cmder, next func() error) error {
		count(len(cmds))
		defer count(-len(cmds))
		return next()
	}))
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			if err := failed(s.Extend(t.Context(), slices.Repeat([]storage.Activity{a}, items))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if total != callers*items {
		t.Errorf("%d commands were sent, want %d", total, callers*items)
	}
	if most > redis.BatchMost*redis.SlotsMost {
		t.Errorf("%d commands were under way at once, want at most %d", most, redis.BatchMost*redis.SlotsMost)
	}
}

// TestWhoLeavesTheQueueSendsNothing: a caller who gives up waiting for a turn
// is told so at once, and what it wanted is not done later.
func TestWhoLeavesTheQueueSendsNothing(t *testing.T) {
	s, a := patient(t)
	two := []storage.Activity{a, a}
	var sent atomic.Int64
	in, release := make(chan struct{}), make(chan struct{})
	s.WatchWrites(pipelines(func(_ []goredis.Cmder, next func() error) error {
		sent.Add(1)
		in <- struct{}{}
		<-release
		return next()
	}))
	var wg sync.WaitGroup
	for range redis.SlotsMost {
		wg.Go(func() {
			if err := failed(s.Extend(t.Context(), two)); err != nil {
				t.Error(err)
			}
		})
		<-in
	}
	// Long enough to be in the queue by then.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := failed(s.Extend(ctx, two)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who left was told %v, want that the context ended", err)
	}
	close(release)
	wg.Wait()
	if sent.Load() != redis.SlotsMost {
		t.Errorf("%d batches were sent, want %d", sent.Load(), redis.SlotsMost)
	}
}
