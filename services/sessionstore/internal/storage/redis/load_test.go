package redis_test

import (
	"cmp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
)

// TestLoadAloneOpensNoBreaker: callers whose batches take a server that is well
// several times the timeout wait for their turn; nobody is told that it is gone.
func TestLoadAloneOpensNoBreaker(t *testing.T) {
	const callers, items = 64, 1000
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Minute}, nil)
	s := open(t, redistest.Start(t).URL(), func(o *redis.Options) {
		o.Timeout, o.Breakers = 500*time.Millisecond, breakers
	})
	x := newSession(1, "ann", time.Hour)
	if _, _, err := s.Create(t.Context(), x, ""); err != nil {
		t.Fatal(err)
	}
	batch := slices.Repeat([]storage.Activity{{SessionID: x.GetId(), Kind: "input"}}, items)
	var g sync.WaitGroup
	for range callers {
		g.Go(func() {
			results, err := s.Extend(t.Context(), batch)
			for _, r := range results {
				err = cmp.Or(err, r.Err)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	for _, b := range breakers.List() {
		if b.Trips > 0 || b.Failures > 0 {
			t.Errorf("%s: %d failures, opened %d times; want none by load alone", b.Name, b.Failures, b.Trips)
		}
	}
}
