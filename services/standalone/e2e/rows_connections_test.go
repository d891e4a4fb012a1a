//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	// frontIdle is after how long the front ends an idle connection, and quietFor how
	// long the clients are quiet.
	frontIdle = time.Second
	quietFor  = 3 * time.Second
)

// connectionFaults are rows of the matrix about connections that end or lead astray
// while Redis is well.
var connectionFaults = []fault{
	idleFault("idle connections closed by the server, TLS", true, redistest.FrontOptions{Idle: frontIdle}),
	idleFault("idle connections forgotten by a balancer, TLS", true, redistest.FrontOptions{Idle: frontIdle, Forget: true}),
	idleFault("idle connections forgotten by a balancer", false, redistest.FrontOptions{Idle: frontIdle, Forget: true}),
	{
		name: "host name moved while the old node lives", expect: "at most some calls fail; reads and writes go to the new node, none is answered by the old one", either: true,
		start:  startBehindName,
		inject: moveName,
		heal:   func(*testing.T, *faultEnv) {},
		after:  checkMoved,
		slack:  5 * time.Second,
	},
}

// idleFault is a row in which the clients are quiet for longer than connections may be
// idle.
func idleFault(name string, overTLS bool, opts redistest.FrontOptions) fault {
	return fault{
		name: name, expect: "nobody notices",
		start: func(t *testing.T, e *faultEnv) []string {
			t.Helper()
			e.startServer(t)
			if !overTLS {
				e.front = redistest.StartFront(t, e.redis.Addr, opts)
				return []string{"--redis-url", "redis://" + e.front.Addr}
			}
			own := opts
			config, ca := redistest.ServerTLS(t)
			own.TLS = config
			e.front = redistest.StartFront(t, e.redis.Addr, own)
			return []string{"--redis-url", "rediss://" + e.front.Addr, "--redis-tls-ca", ca}
		},
		inject: func(t *testing.T, e *faultEnv) {
			t.Helper()
			e.fillPools(t)
			before := e.front.IdleEnded()
			e.quiet.Store(true)
			time.Sleep(quietFor) // this is the fault: nothing is sent
			if n := e.front.IdleEnded() - before; n < faultFailures {
				t.Errorf("%d idle connections were ended: too few to open a breaker, should they count", n)
			}
		},
		heal: func(_ *testing.T, e *faultEnv) { e.quiet.Store(false) },
	}
}

// fillPools makes so many calls at once that the store opens more connections.
func (e *faultEnv) fillPools(t *testing.T) {
	t.Helper()
	var calls sync.WaitGroup
	for n := range 64 {
		calls.Go(func() {
			for range 4 {
				_, _ = e.store.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageSize: 10})
				_, _ = e.store.RevokeUserSessions(t.Context(), &sessionv1.RevokeUserSessionsRequest{User: fmt.Sprint("nobody-", n)})
			}
		})
	}
	calls.Wait()
}

// startBehindName starts a second server, the replica of the first, and a front that
// stands for the host name of the two.
func startBehindName(t *testing.T, e *faultEnv) []string {
	t.Helper()
	e.startServer(t)
	e.former = e.redis
	e.front = redistest.StartFront(t, e.former.Addr, redistest.FrontOptions{})
	host, port, _ := net.SplitHostPort(e.former.Addr)
	e.redis = redistest.Start(t, "--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	eventually(t, 10*time.Second, "the replica is in sync", func() bool {
		return redistest.Info(t, e.redis, "replication")["master_link_status"] == "up"
	})
	e.url = e.redis.URL()
	return []string{"--redis-url", "redis://" + e.front.Addr}
}

// moveName hands over to the replica without a loss, and moves the name. The former
// master stays up as a replica that gets nothing any more: what is read there is old.
func moveName(t *testing.T, e *faultEnv) {
	t.Helper()
	host, port, _ := net.SplitHostPort(e.redis.Addr)
	must(t, e.raw.Do(t.Context(), "FAILOVER", "TO", host, port).Err())
	eventually(t, 10*time.Second, "the replica is promoted", func() bool {
		return redistest.Info(t, e.redis, "replication")["role"] == "master" && redistest.Info(t, e.former, "replication")["role"] == "slave"
	})
	e.front.Point(e.redis.Addr)
	must(t, e.raw.ReplicaOf(t.Context(), "127.0.0.1", "1").Err())
	if n := e.front.Connected(e.former.Addr); n == 0 {
		t.Log("the store had already left the former master")
	}
}

// checkMoved makes sure that the former master is alive and stale, and that the store
// reads what it writes.
func checkMoved(t *testing.T, e *faultEnv) {
	t.Helper()
	if info := redistest.Info(t, e.former, "replication"); info["role"] != "slave" || info["master_link_status"] != "down" {
		t.Fatalf("the former master is not demoted and cut off: %v", info)
	}
	for n := range 100 {
		s, err := e.store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: fmt.Sprint("moved-", n)})
		must(t, err)
		_, stale, err := e.get(t.Context(), s.GetId())
		if err != nil || stale {
			t.Fatalf("a new session reads as %v, from memory: %v", err, stale)
		}
		_, err = e.store.EndSession(t.Context(), &sessionv1.EndSessionRequest{Id: s.GetId()})
		must(t, err)
		if got, stale, err := e.get(t.Context(), s.GetId()); err != nil || stale || got.GetEndTime() == nil {
			t.Fatalf("an ended session reads as %v, %v, from memory: %v", got, err, stale)
		}
	}
	// What lists and watches read must come from the new master, too.
	page, err := e.store.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageSize: 1})
	if must(t, err); len(page.GetSessions()) == 0 {
		t.Error("a list is empty")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	id := e.pick()
	watch, err := e.store.WatchEvents(ctx, &sessionv1.WatchEventsRequest{Id: id})
	must(t, err)
	if _, err := e.store.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Id: "moved", Type: "input:text"}}}); err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := watch.Recv()
		if c := status.Code(err); c == codes.DeadlineExceeded {
			t.Fatal("a watch does not hear of events any more")
		}
		must(t, err)
		if resp.GetEvent().GetId() == "moved" {
			return
		}
	}
}
