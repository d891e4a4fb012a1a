package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// listen accepts connections until the test ends, and hands each to serve.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			serve(conn)
		}
	}()
	t.Cleanup(func() {
		_ = lis.Close()
		<-done
	})
	return lis.Addr().String()
}

func connect(t *testing.T, addr string, timeout time.Duration, s *starvation) (*pooled, *server) {
	t.Helper()
	to := &server{addr: addr}
	d := &dialer{timeout: timeout, starved: s, tls: func(string) (*tls.Config, error) { return nil, nil }}
	conn, err := d.dial(t.Context(), to, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	p, _ := conn.(*pooled)
	return p, to
}

// exchange writes a byte and reads the reply, with the deadlines that go-redis sets.
func exchange(p *pooled, timeout time.Duration) error {
	if err := p.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := p.Write([]byte{'a'}); err != nil {
		return err
	}
	if err := p.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := p.Read(make([]byte, 1))
	return err
}

// echo replies to so many bytes, each after a pause, and closes the connection when it
// has read the next.
func echo(replies int, pause time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		b := make([]byte, 1)
		for range replies {
			if _, err := conn.Read(b); err != nil {
				return
			}
			time.Sleep(pause)
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
		_, _ = conn.Read(b)
	}
}

// TestStaleConnections: a connection that ends with the first request after a pause was
// closed while it was idle; one that ends in the middle of traffic, or before it ever
// served, broke.
func TestStaleConnections(t *testing.T) {
	const timeout = time.Second
	for _, c := range []struct {
		name    string
		replies int
		pause   time.Duration
		stale   bool
	}{
		{"idle", 2, idleAfter + 50*time.Millisecond, true},
		{"busy", 2, 0, false},
		{"new", 0, idleAfter + 50*time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := connect(t, listen(t, echo(c.replies, 0)), timeout, nil)
			for range c.replies {
				if err := exchange(p, timeout); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(c.pause) // what is tested: for how long the connection was idle
			err := exchange(p, timeout)
			if !isEnd(err) || isStale(err) != c.stale {
				t.Errorf("%v: stale %v, want an end of the connection with %v", err, isStale(err), c.stale)
			}
		})
	}
}

// TestStarvationExtendsDeadlines by as long as the process did not get to run, and by
// no more than a bound.
func TestStarvationExtendsDeadlines(t *testing.T) {
	const timeout = 100 * time.Millisecond
	for _, c := range []struct {
		name    string
		late    time.Duration // before the deadline
		pause   time.Duration // of the server
		timeout bool
	}{
		{"not starved, in time", 0, timeout / 4, false},
		{"not starved, too late", 0, 3 * timeout, true},
		{"starved, and late by less", 8 * timeout, 3 * timeout, false},
		{"starved, and late by more than a bound", 100 * timeout, 3 * extensionsMost * timeout, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &starvation{}
			s.next.Store(time.Now().Add(time.Hour).UnixNano())
			addr := listen(t, echo(1, c.pause))
			p, _ := connect(t, addr, timeout, s)
			lateness := time.AfterFunc(timeout/4, func() { s.late.Add(int64(c.late)) })
			defer lateness.Stop()
			begin := time.Now()
			err := exchange(p, timeout)
			if got := errors.Is(err, os.ErrDeadlineExceeded); got != c.timeout || !got && err != nil {
				t.Errorf("%v after %v, want a timeout: %v", err, time.Since(begin), c.timeout)
			}
			if took := time.Since(begin); took > (extensionsMost+3)*timeout+time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// TestStarvationIsMeasured where the process does not get to run, and nothing where it
// does.
func TestStarvationIsMeasured(t *testing.T) {
	s := &starvation{}
	s.next.Store(time.Now().Add(-time.Second).UnixNano()) // it should have woken a second ago
	if got := s.since(0, time.Minute); got < 900*time.Millisecond || got > 10*time.Second {
		t.Errorf("late by %v, want about 1 s", got)
	}
	s.next.Store(time.Now().Add(time.Hour).UnixNano())
	if got := s.since(0, time.Minute); got != 0 {
		t.Errorf("late by %v, want 0", got)
	}
	s.late.Store(int64(3 * time.Second))
	s.before.Store(int64(2 * time.Second))
	if got := s.since(3*time.Second, time.Minute); got != time.Second {
		t.Errorf("%v, want what it was in the last second", got)
	}
	if got := s.since(3*time.Second, time.Millisecond); got != time.Millisecond {
		t.Errorf("%v, want the bound of that", got)
	}
	running := measureStarvation()
	defer running.close()
	if running.next.Load() == 0 {
		t.Error("it does not run")
	}
}

// TestRetiredConnectionsAreNotUsedAgain, and those of the other side that are closed or
// have data waiting neither.
func TestRetiredConnectionsAreNotUsedAgain(t *testing.T) {
	p, s := connect(t, listen(t, echo(1, 0)), time.Second, nil)
	if _, err := p.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	s.retire()
	if _, err := p.SyscallConn(); !errors.Is(err, errRetired) {
		t.Errorf("after its retirement: %v", err)
	}
	p, s = connect(t, listen(t, echo(1, 0)), time.Second, nil)
	s.identify("a")
	s.identify("a")
	if _, err := p.SyscallConn(); err != nil {
		t.Errorf("the same process: %v", err)
	}
	s.identify("b")
	if _, err := p.SyscallConn(); !errors.Is(err, errRetired) {
		t.Errorf("another process: %v", err)
	}
}

// TestStaleTripsAreMadeAgain where that is harmless, once, on new connections, and count
// neither against the server nor for it.
func TestStaleTripsAreMadeAgain(t *testing.T) {
	stale := staleError{io.EOF}
	for _, c := range []struct {
		name     string
		again    bool
		errs     []error
		trips    int
		failures int
		err      error
	}{
		{"read", true, []error{stale, nil}, 2, 0, nil},
		{"read, twice", true, []error{stale, stale, nil}, 2, 3, stale},
		{"read, and Redis is gone", true, []error{stale, net.ErrClosed}, 2, 4, net.ErrClosed},
		{"write", false, []error{stale, nil}, 1, 3, stale},
		{"broken", true, []error{io.EOF, nil}, 1, 4, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			breaker := resilience.NewRegistry(resilience.BreakerConfig{}, nil).Breaker(ClassRead, "node")
			for range 3 {
				_ = breaker.Guard(func() resilience.Outcome { return resilience.Fault })
			}
			s := &server{}
			g := newGuard(breaker, time.Second, c.again)
			g.server, g.opened = func() *server { return s }, func(context.Context) {}
			var trips atomic.Int32
			next := func(context.Context) error { return c.errs[trips.Add(1)-1] }
			err := g.ProcessHook(func(ctx context.Context, _ goredis.Cmder) error { return next(ctx) })(t.Context(), goredis.NewCmd(t.Context(), "get", "a"))
			if !errors.Is(err, c.err) || int(trips.Load()) != c.trips {
				t.Errorf("single: %v after %d trips, want %v after %d", err, trips.Load(), c.err, c.trips)
			}
			if got := breaker.Status().Failures; got != c.failures {
				t.Errorf("single: %d failures in a row, want %d", got, c.failures)
			}
			if c.trips > 1 && s.generation.Load() == 0 {
				t.Error("connections of the same age are used again")
			}
			trips.Store(0)
			cmds := []goredis.Cmder{goredis.NewCmd(t.Context(), "get", "a"), goredis.NewCmd(t.Context(), "get", "b")}
			_ = g.ProcessPipelineHook(func(ctx context.Context, cmds []goredis.Cmder) error {
				err := next(ctx)
				for _, cmd := range cmds {
					cmd.SetErr(err)
				}
				return err
			})(t.Context(), cmds)
			if err := cmds[1].Err(); !errors.Is(err, c.err) || int(trips.Load()) != c.trips {
				t.Errorf("batch: %v after %d trips, want %v after %d", err, trips.Load(), c.err, c.trips)
			}
		})
	}
}

// TestDialsTheServerOfNow: the store moves to another server while a connection to the
// one before is made. That one is not used, not even once.
func TestDialsTheServerOfNow(t *testing.T) {
	accepted := make(chan string, 4)
	var addrs [2]string
	for i := range addrs {
		addrs[i] = listen(t, func(conn net.Conn) {
			accepted <- conn.LocalAddr().String()
			_ = conn.Close()
		})
	}
	e := &endpoint{suspect: make(chan struct{}, 1), breakers: resilience.NewRegistry(resilience.BreakerConfig{}, nil)}
	before := &server{addr: addrs[0]}
	e.current.Store(before)
	e.conn = &conn{dialer: &dialer{timeout: time.Second, tls: func(string) (*tls.Config, error) {
		e.move(before, addrs[1]) // it does so once
		return nil, nil
	}}}
	conn, err := e.dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if got := conn.RemoteAddr().String(); got != addrs[1] {
		t.Errorf("connected to %s, want %s", got, addrs[1])
	}
	if <-accepted != addrs[0] {
		t.Error("the server before was not dialed: this shows nothing")
	}
}
