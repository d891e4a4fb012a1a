package redistest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestFrontEndsIdleConnections(t *testing.T) {
	const idle = 500 * time.Millisecond
	s := Start(t)
	config, caFile := ServerTLS(t)
	raw, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(raw)
	for name, c := range map[string]struct {
		opts FrontOptions
		want func(error) bool
	}{
		"closed, TLS":    {FrontOptions{TLS: config, Idle: idle}, isClosed},
		"closed, TCP":    {FrontOptions{Idle: idle}, isClosed},
		"forgotten, TLS": {FrontOptions{TLS: config, Idle: idle, Forget: true}, func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
		"forgotten, TCP": {FrontOptions{Idle: idle, Forget: true}, func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := StartFront(t, s.Addr, c.opts)
			conn, err := net.Dial("tcp", f.Addr)
			if err != nil {
				t.Fatal(err)
			}
			if c.opts.TLS != nil {
				conn = tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			replies := bufio.NewReader(conn)
			for begin := time.Now(); time.Since(begin) < idle+idle/2; { // busy for longer than the idle time
				if _, err := exchange(conn, replies, "PING"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			if n := f.IdleEnded(); n != 0 {
				t.Fatalf("%d busy connections were ended", n)
			}
			await(t, "the idle connection is ended", func() error {
				if f.IdleEnded() != 1 {
					return fmt.Errorf("%d were ended", f.IdleEnded())
				}
				return nil
			})
			if _, err := exchange(conn, replies, "PING"); !c.want(err) {
				t.Errorf("after that a command fails with %v", err)
			}
		})
	}
}

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

func TestFrontKeepsConnectionsWhenItMoves(t *testing.T) {
	a, b := Start(t), Start(t)
	for i, s := range []*Server{a, b} {
		if _, err := command(t.Context(), s.Addr, "SET", "name", string(rune('a'+i))); err != nil {
			t.Fatal(err)
		}
	}
	f := StartFront(t, a.Addr, FrontOptions{})
	conn, err := net.Dial("tcp", f.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	replies := bufio.NewReader(conn)
	for _, step := range []func(){func() {}, func() { f.Point(b.Addr) }} {
		step()
		if got, err := exchange(conn, replies, "GET", "name"); err != nil || got != "a" {
			t.Fatalf("the old connection leads to %v, %v, want a", got, err)
		}
	}
	if got, err := text(t.Context(), f.Addr, "GET", "name"); err != nil || got != "b" {
		t.Errorf("a new connection leads to %q, %v, want b", got, err)
	}
	if n := f.Connected(a.Addr); n != 1 {
		t.Errorf("%d connections to the former server, want 1", n)
	}
}

func TestMovingName(t *testing.T) {
	n := StartMovingName(t, 2)
	first, err := n.Resolve(t.Context(), MovingHost)
	if err != nil || len(first) != 1 || net.JoinHostPort(first[0], n.Port) != n.Servers[0].Addr {
		t.Fatalf("%v %v, want the address of %s", first, err, n.Servers[0].Addr)
	}
	n.Move(1)
	if second, err := n.Resolve(t.Context(), MovingHost); err != nil || net.JoinHostPort(second[0], n.Port) != n.Servers[1].Addr || n.Lookups() != 2 {
		t.Errorf("%v %v after %d lookups", second, err, n.Lookups())
	}
}

func TestSnapshotsAndMemory(t *testing.T) {
	s := Start(t)
	do := func(args ...string) (any, error) { return command(t.Context(), s.Addr, args...) }
	_, _ = do("SET", "k", "old")
	dump := TakeSnapshot(t, s)
	_, _ = do("SET", "k", "new")
	RestoreSnapshot(t, s, dump)
	if got, err := do("GET", "k"); err != nil || got != "old" {
		t.Errorf("after the restore k is %v, %v, want old", got, err)
	}
	LimitMemory(t, s, "noeviction", -100_000)
	if _, err := do("SET", "k", "full"); err == nil {
		t.Error("a full server takes a write")
	}
	UnlimitMemory(t, s)
	if _, err := do("SET", "k", "room"); err != nil {
		t.Error(err)
	}
}
