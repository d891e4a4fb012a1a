//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestTwoSweepersExpireEachSessionOnce: two replicas of the store sweep 10,000
// sessions that are due at one time.
func TestTwoSweepersExpireEachSessionOnce(t *testing.T) {
	const sessions = 10_000
	redis := redistest.Start(t)
	var stores []sessionv1.StorageServiceClient
	var metrics []string
	for range 2 {
		addr, admin := freeAddr(t), freeAddr(t)
		p := start(t, "sessionstore", "--grpc-addr", addr, "--admin-addr", admin, "--storage", "redis", "--redis-url", redis.URL(), "--sweep-interval", "50ms")
		ready(t, "http://"+admin+"/readyz", p)
		stores = append(stores, dial(t, addr))
		metrics = append(metrics, "http://"+admin+"/metrics")
	}
	var mu sync.Mutex
	told := map[string]int{}
	follow(t, stores[0], "audit", func(e *sessionv1.FeedEntry) {
		if e.GetEvent().GetType() == "session:expired" {
			mu.Lock()
			defer mu.Unlock()
			told[e.GetSessionId()]++
		}
	})

	due := time.Now().Add(20 * time.Second)
	ids := make([]string, sessions)
	parallel(t, sessions, func(ctx context.Context, i int) error {
		s, err := stores[i%2].CreateSession(ctx, &sessionv1.CreateSessionRequest{
			User: fmt.Sprint("user-", i), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Until(due)), ExtendBelow: durationpb.New(0)},
		})
		ids[i] = s.GetId()
		return err
	})
	if early := time.Until(due); early < 0 {
		t.Fatalf("creating took %v too long for all to be due at once", -early)
	}
	swept := func() (sum, least float64) {
		least = sessions
		for _, m := range metrics {
			n := metricWhere(t, m, "stoker_swept_total", `action="expired"`)
			sum, least = sum+n, min(least, n)
		}
		return sum, least
	}
	eventually(t, 60*time.Second, "all are told of", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(told) == sessions
	})
	took := time.Since(due).Round(time.Millisecond)
	least := 0.0
	eventually(t, 10*time.Second, "the sweepers have counted them, each a share", func() bool {
		var sum float64
		sum, least = swept()
		return sum == sessions && least > 0
	})
	t.Logf("%d sessions swept %v after they were due, %v of them by one replica", sessions, took, least)
	parallel(t, sessions/20, func(ctx context.Context, i int) error {
		after := "0"
		page, err := stores[i%2].ListEvents(ctx, &sessionv1.ListEventsRequest{Id: ids[i*20], After: &after, Limit: 1000})
		if err != nil {
			return err
		}
		n := 0
		for _, e := range page.GetEvents() {
			if e.GetType() == "session:expired" {
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("the log of %s has %d session:expired", ids[i*20], n)
		}
		return nil
	})
	// Reading the logs took several sweeps: no session was swept again in them.
	if sum, _ := swept(); sum != sessions {
		t.Errorf("%v sessions swept, want %d", sum, sessions)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, id := range ids {
		if told[id] != 1 {
			t.Fatalf("%s is told to have expired %d times", id, told[id])
		}
	}
}
