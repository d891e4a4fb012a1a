//go:build e2e

package e2e

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// dial connects to a store until the test ends.
func dial(t *testing.T, addr string) sessionv1.StorageServiceClient {
	t.Helper()
	conn, err := rpc.Dial(addr, telemetry.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return sessionv1.NewStorageServiceClient(conn)
}

// parallel calls do for 0 to n-1, 32 at a time, and fails with the first error.
func parallel(t *testing.T, n int, do func(ctx context.Context, i int) error) {
	t.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	var once sync.Once
	for range 32 {
		wg.Go(func() {
			for i := range next {
				if err := do(t.Context(), i); err != nil {
					once.Do(func() { t.Errorf("%d: %v", i, err) })
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// follow reads a feed as a group of its own, acknowledging everything, and
// calls fn for each entry until the test ends.
func follow(t *testing.T, store sessionv1.StorageServiceClient, group string, fn func(e *sessionv1.FeedEntry)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := store.Feed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	if err := stream.Send(&sessionv1.FeedRequest{Open: &sessionv1.FeedRequest_Open{Group: group, Consumer: "one"}, Credits: 10_000}); err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	go func() {
		defer close(done)
		readAll(t, stream, first, fn)
	}()
	<-first // the group exists: nothing from here on is missed
}

func readAll(t *testing.T, stream grpc.BidiStreamingClient[sessionv1.FeedRequest, sessionv1.FeedResponse], first chan struct{}, fn func(e *sessionv1.FeedEntry)) {
	once := sync.OnceFunc(func() { close(first) })
	defer once()
	for {
		m, err := stream.Recv()
		if err != nil {
			if stream.Context().Err() == nil {
				t.Errorf("feed: %v", err)
			}
			return
		}
		once()
		acks := map[int32]string{}
		for _, e := range m.GetEntries() {
			fn(e)
			acks[e.GetShard()] = e.GetCursor()
		}
		req := &sessionv1.FeedRequest{Credits: int32(len(m.GetEntries()))}
		for shard, cursor := range acks {
			req.Acks = append(req.Acks, &sessionv1.FeedRequest_Ack{Shard: shard, Cursor: cursor})
		}
		if len(req.GetAcks()) > 0 {
			_ = stream.Send(req) // a broken stream shows in Recv
		}
	}
}
