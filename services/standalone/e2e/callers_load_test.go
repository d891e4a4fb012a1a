//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestLoadOpensNoBreaker: 512 callers report activity as fast as they can while four
// other processes compete for the processors. Redis is well: no call fails and no
// breaker opens. STOKER_LOAD_TIME sets for how long; 15 s where it is empty.
func TestLoadOpensNoBreaker(t *testing.T) {
	const callers, busy = 512, 4
	long := 15 * time.Second
	if text := os.Getenv("STOKER_LOAD_TIME"); text != "" {
		var err error
		long, err = time.ParseDuration(text)
		must(t, err)
	}
	redis := redistest.Start(t)
	grpcAddr, adminAddr := freeAddr(t), freeAddr(t)
	p := start(t, "sessionstore", "--grpc-addr", grpcAddr, "--admin-addr", adminAddr, "--storage", "redis", "--redis-url", redis.URL())
	ready(t, "http://"+adminAddr+"/readyz", p)
	var stores []sessionv1.StorageServiceClient
	var admin sessionv1.AdminServiceClient
	for range 8 {
		conn, err := grpc.NewClient(grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		stores, admin = append(stores, sessionv1.NewStorageServiceClient(conn)), sessionv1.NewAdminServiceClient(conn)
	}
	ids := make([]string, callers)
	for i := range ids {
		s, err := stores[0].CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann"})
		must(t, err)
		ids[i] = s.GetId()
	}
	for range busy {
		beBusy(t)
	}

	var calls, failed atomic.Int64
	var first atomic.Pointer[error]
	took := make([][]time.Duration, callers)
	var all sync.WaitGroup
	end := time.Now().Add(long)
	for i, id := range ids {
		all.Go(func() {
			for at := time.Now(); at.Before(end); at = time.Now() {
				_, err := stores[i%len(stores)].ExtendTTL(t.Context(), &sessionv1.ExtendTTLRequest{Id: id, ActivityTime: timestamppb.New(at), ActivityKind: "input"})
				calls.Add(1)
				took[i] = append(took[i], time.Since(at))
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	all.Wait()
	list, err := admin.ListBreakers(t.Context(), &sessionv1.ListBreakersRequest{})
	must(t, err)
	for _, b := range list.GetBreakers() {
		if b.GetTotalTrips() > 0 || b.GetState() != sessionv1.Breaker_CLOSED {
			t.Errorf("breaker %s: %v, opened %d times", b.GetName(), b.GetState(), b.GetTotalTrips())
		}
	}
	sorted := slices.Sorted(slices.Values(slices.Concat(took...)))
	t.Logf("%d calls in %v, %d failed; median %v, p99 %v, longest %v", calls.Load(), long, failed.Load(),
		sorted[len(sorted)/2], sorted[len(sorted)*99/100], sorted[len(sorted)-1])
	if failed.Load() > 0 {
		t.Errorf("%d of %d calls failed, such as: %v", failed.Load(), calls.Load(), *first.Load())
	}
	if least := int64(callers) * int64(long/time.Second); calls.Load() < least {
		t.Errorf("%d calls, want at least %d: this was no load", calls.Load(), least)
	}
}

// beBusy starts a process that takes all the processor it gets, and ends it with the
// test.
func beBusy(t *testing.T) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	must(t, cmd.Start())
	t.Cleanup(func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // it says that it was killed
	})
}
