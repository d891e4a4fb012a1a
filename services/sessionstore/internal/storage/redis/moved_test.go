package redis_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func ask(t *testing.T, s *redistest.Server, command string) {
	t.Helper()
	if reply, err := s.Ask(t.Context(), command); err != nil || strings.HasPrefix(reply, "-") {
		t.Fatalf("%s: %q %v", command, reply, err)
	}
}

// replicate makes one server the replica of another, and waits until it is in sync.
func replicate(t *testing.T, replica, master *redistest.Server) {
	t.Helper()
	ask(t, replica, "REPLICAOF "+strings.Replace(master.Addr, ":", " ", 1))
	storagetest.Until(t, "the replica is in sync", func() bool {
		reply, err := replica.Ask(t.Context(), "INFO replication")
		return err == nil && strings.Contains(reply, "master_link_status:up")
	})
}

func nodes(breakers *resilience.Registry) map[string]bool {
	out := map[string]bool{}
	for _, b := range breakers.List() {
		out[b.Node] = true
	}
	return out
}

// TestNameThatMoves: a host name moves to another server while the one before lives on,
// as its replica or as a master that knows of nothing. From some seconds later on, every
// call reaches the new one; before that, reads and writes reach the same one.
func TestNameThatMoves(t *testing.T) {
	for name, demoted := range map[string]bool{"old node becomes a replica": true, "old node stays a master": false} {
		t.Run(name, func(t *testing.T) {
			n := redistest.StartMovingName(t, 2, "--repl-diskless-sync-delay", "0")
			before, after := n.Servers[0], n.Servers[1]
			breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Minute}, nil)
			s := open(t, n.URL(), func(o *redis.Options) { o.Resolve, o.Breakers = n.Resolve, breakers })
			early, _ := create(t, s, newSession(1, "ann", time.Hour), "")
			replicate(t, after, before)
			if !nodes(breakers)[before.Addr] {
				t.Fatalf("breakers %v, want those of %s", nodes(breakers), before.Addr)
			}

			ask(t, after, "REPLICAOF NO ONE")
			n.Move(1)
			if demoted {
				replicate(t, before, after)
			}
			client := goredis.NewClient(&goredis.Options{Addr: after.Addr})
			t.Cleanup(func() { _ = client.Close() })
			var split, made int
			storagetest.Until(t, "calls reach the new server", func() bool {
				sess := newSession(1, "ann", time.Hour)
				if _, _, err := s.Create(t.Context(), sess, ""); err != nil {
					return false
				}
				made++
				if _, err := s.Get(t.Context(), sess.GetId()); errors.Is(err, storage.ErrNotFound) {
					split++ // written to one, read from the other
				}
				return client.Exists(t.Context(), "stoker:{s1}:session:"+sess.GetId()).Val() == 1
			})
			if split > 1 { // the move itself may come between a write and its read
				t.Errorf("%d of %d sessions were not where they were read at once", split, made)
			}
			if _, err := s.Get(t.Context(), early); err != nil {
				t.Errorf("what was replicated: %v", err)
			}
			// A change on the old server must not be seen any more.
			storagetest.Until(t, "the breakers of the old server are removed", func() bool { return !nodes(breakers)[before.Addr] })
			for range 50 {
				if _, err := s.End(t.Context(), early, ""); err != nil {
					t.Fatal(err)
				}
				if sess, err := s.Get(t.Context(), early); err != nil || sess.GetPhase() != sessionv1.Session_ENDED {
					t.Fatalf("ended, and read as %v %v", sess.GetPhase(), err)
				}
			}
			if n.Lookups() == 0 {
				t.Error("the name was never looked up")
			}
			if breakers.Degraded() {
				t.Errorf("degraded: %+v", breakers.List())
			}
		})
	}
}

// TestNoReadsFromADemotedServer: the server at a fixed address becomes a replica. What
// is read there may be old: it is not returned. When it is a master again it is used.
func TestNoReadsFromADemotedServer(t *testing.T) {
	server, other := redistest.Start(t, "--repl-diskless-sync-delay", "0"), redistest.Start(t, "--repl-diskless-sync-delay", "0")
	s := open(t, server.URL())
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	replicate(t, other, server)
	ask(t, other, "REPLICAOF NO ONE")
	replicate(t, server, other)
	storagetest.Until(t, "reads fail", func() bool {
		_, err := s.Get(t.Context(), id)
		return errors.Is(err, storage.ErrUnavailable)
	})
	for range 20 {
		if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("read from a replica: %v", err)
		}
	}
	ask(t, server, "REPLICAOF NO ONE")
	storagetest.Until(t, "reads work", func() bool {
		_, err := s.Get(t.Context(), id)
		return err == nil
	})
}

// TestSentinelPromotion: the master is killed. Its replica serves within two seconds of
// its promotion, though the breakers of the dead one are open for a minute.
func TestSentinelPromotion(t *testing.T) {
	if testing.Short() {
		t.Skip("Sentinels take seconds to agree")
	}
	d := redistest.StartSentinel(t, redistest.SentinelOptions{})
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Minute}, nil)
	s := open(t, d.URL(), func(o *redis.Options) { o.Breakers, o.Timeout = breakers, 250*time.Millisecond })
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	former, err := d.Master(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d.AwaitReplica(t, d.Servers[1])
	if !nodes(breakers)[former.Addr] {
		t.Fatalf("breakers %v, want those of %s", nodes(breakers), former.Addr)
	}
	if err := former.Kill(); err != nil {
		t.Fatal(err)
	}
	var opened atomic.Bool
	stop := make(chan struct{})
	served := make(chan time.Time, 1)
	go func() { // it calls until all kinds of calls work
		defer close(served)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			_, err1 := s.Get(t.Context(), id)
			_, err2 := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
			var open *resilience.OpenError
			if errors.As(err1, &open) || errors.As(err2, &open) {
				opened.Store(true)
			}
			if err1 == nil && err2 == nil {
				served <- time.Now()
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop) })
	_, promoted := d.AwaitPromotion(t, former)
	select {
	case at := <-served:
		t.Logf("served %v after the promotion was seen", at.Sub(promoted))
		if at.Sub(promoted) > 2*time.Second {
			t.Errorf("served %v after the promotion, want at most 2 s", at.Sub(promoted))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("never served")
	}
	if !opened.Load() {
		t.Error("no breaker of the dead master opened: this shows nothing")
	}
	if now := nodes(breakers); now[former.Addr] || len(now) != 1 {
		t.Errorf("breakers of %v, want those of the new master alone", now)
	}
	if breakers.Degraded() {
		t.Errorf("degraded: %+v", breakers.List())
	}
}

// TestClosedIdleConnections: a server that closes idle connections. The first calls
// after a quiet time work, and count nothing against it.
func TestClosedIdleConnections(t *testing.T) {
	server := redistest.Start(t, "--timeout", "1")
	breakers := resilience.NewRegistry(resilience.BreakerConfig{}, nil)
	s := open(t, server.URL(), func(o *redis.Options) { o.Breakers = breakers })
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = client.Close() })
	work := func() {
		done := make(chan error, 40)
		for range cap(done) {
			go func() {
				_, err1 := s.List(t.Context(), storage.ListQuery{Limit: 1})
				_, err2 := s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
				done <- errors.Join(err1, err2)
			}()
		}
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	for range 3 {
		work()
		idle := func() int { // connections of the store beside the tail's and the probe's
			return strings.Count(client.ClientList(t.Context()).Val(), "cmd=evalsha") + strings.Count(client.ClientList(t.Context()).Val(), "cmd=zrange")
		}
		if idle() == 0 {
			t.Error("no connection was idle: this shows nothing")
		}
		storagetest.Until(t, "the server has closed them", func() bool { return idle() == 0 })
	}
	for _, b := range breakers.List() {
		if b.Trips > 0 || !b.LastFailure.IsZero() {
			t.Errorf("counted: %+v", b)
		}
	}
}

// TestBreakersCloseWithoutCalls: after an outage, the breakers of every class close
// though nobody calls.
func TestBreakersCloseWithoutCalls(t *testing.T) {
	server := redistest.Start(t)
	s, breakers := guarded(t, server.URL(), 250*time.Millisecond, 200*time.Millisecond)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	id := newSession(1, "ann", time.Hour).GetId()
	storagetest.Until(t, "every breaker is open", func() bool {
		_, _ = s.Get(t.Context(), id)
		_, _ = s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
		_, _ = s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
		open := 0
		for _, b := range breakers.List() {
			if b.Trips > 0 {
				open++
			}
		}
		return open == 4
	})
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "every breaker is closed", func() bool { return !breakers.Degraded() })
}

// TestHungServerIsNoticedByTheFeed: the wait for news ends soon after its block time,
// though the command would be given 10 s more.
func TestHungServerIsNoticedByTheFeed(t *testing.T) {
	server := redistest.Start(t)
	_, breakers := guarded(t, server.URL(), 100*time.Millisecond, time.Hour)
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	storagetest.Until(t, "the feed meets a fault", func() bool { return !state(breakers, redis.ClassStream).LastFailure.IsZero() })
	// 2 s of block, a timeout, and extensions for a busy machine.
	if took := time.Since(begin); took > 6*time.Second {
		t.Errorf("noticed after %v", took)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
}

// TestOutagesLeaveNoMark: a name moves again and again, each time after the server
// before was killed under calls. What failed there does not count against the one that
// follows: no breaker of it opens.
func TestOutagesLeaveNoMark(t *testing.T) {
	n := redistest.StartMovingName(t, 5, "--repl-diskless-sync-delay", "0")
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Minute}, nil)
	s := open(t, n.URL(), func(o *redis.Options) { o.Resolve, o.Breakers, o.Timeout = n.Resolve, breakers, 250*time.Millisecond })
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	call := func() bool {
		time.Sleep(2 * time.Millisecond) // the pace of the calls
		_, err1 := s.Get(context.Background(), id)
		_, err2 := s.Append(context.Background(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
		return err1 == nil && err2 == nil
	}
	for to := 1; to < len(n.Servers); to++ {
		replicate(t, n.Servers[to], n.Servers[to-1])
		if err := n.Servers[to-1].Kill(); err != nil {
			t.Fatal(err)
		}
		storagetest.Until(t, "breakers open", func() bool {
			call()
			return state(breakers, redis.ClassRead).State == resilience.Open && state(breakers, redis.ClassWrite).State == resilience.Open
		})
		ask(t, n.Servers[to], "REPLICAOF NO ONE")
		n.Move(to)
		began := time.Now()
		storagetest.Until(t, "the new server serves", call)
		t.Logf("move %d: served after %v", to, time.Since(began))
		for _, b := range breakers.List() {
			if b.Trips > 0 || b.Node != n.Servers[to].Addr {
				t.Errorf("move %d: %+v", to, b)
			}
		}
	}
}

// TestRefusalIsNoRole: a server that refuses the login has not said that it is a master,
// and is not used until it has.
func TestRefusalIsNoRole(t *testing.T) {
	n := redistest.StartMovingName(t, 2)
	next := control(t, n.Servers[1].Addr)
	next.do("config", "set", "requirepass", "another")
	breakers := resilience.NewRegistry(resilience.BreakerConfig{}, nil)
	s := open(t, n.URL(), func(o *redis.Options) { o.Resolve, o.Breakers = n.Resolve, breakers })
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	n.Move(1)
	before := n.Lookups()
	storagetest.Until(t, "the name was looked up twice", func() bool {
		if _, err := s.Get(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return n.Lookups() > before+1
	})
	next.do("config", "set", "requirepass", "")
	storagetest.Until(t, "the server that says that it is a master is used", func() bool { return nodes(breakers)[n.Servers[1].Addr] })
}
