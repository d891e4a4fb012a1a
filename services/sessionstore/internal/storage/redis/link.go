package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// link is a TCP connection whose deadlines are judged by the time that this process
// got to run.
type link struct {
	net.Conn
	timeout time.Duration
	starved *starvation

	// What follows is used by one goroutine at a time: go-redis hands a connection
	// from one to the next.
	deadline time.Time     // of reads; zero for none
	late     time.Duration // what starved had measured when the deadline was set
}

const (
	// extensionsMost bounds by how many timeouts starvation extends a deadline.
	extensionsMost = 4
	// extensionsRecent bounds the part of it that is due to the seconds before.
	extensionsRecent = 1
	// graceRead is for how long a read or write goes on past its deadline in any case:
	// what has arrived by then was sent in time.
	graceRead = time.Millisecond
)

// SetDeadline sets the deadline of reads and of writes.
func (l *link) SetDeadline(t time.Time) error {
	return errors.Join(l.SetReadDeadline(t), l.SetWriteDeadline(t))
}

// SetReadDeadline sets the deadline of reads.
func (l *link) SetReadDeadline(t time.Time) error {
	l.deadline, l.late = t, l.starved.total()
	return l.Conn.SetReadDeadline(t)
}

// Read reads, and goes on past the deadline for as long as this process did not get to
// run before it.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	for granted := time.Duration(0); n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && !l.deadline.IsZero(); {
		debt := l.debt()
		if debt <= granted {
			break
		}
		// From now on: the process may have been late in getting here, too.
		if err := l.Conn.SetReadDeadline(time.Now().Add(debt - granted)); err != nil {
			return 0, err
		}
		granted = debt
		n, err = l.Conn.Read(p)
	}
	return n, err
}

// Write writes, and goes on past the deadline as Read does.
func (l *link) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		if err := l.SetWriteDeadline(time.Now().Add(l.debt())); err != nil {
			return 0, err
		}
		n, err = l.Conn.Write(p)
	}
	return n, err
}

// debt is by how much a deadline is extended.
func (l *link) debt() time.Duration {
	return max(graceRead, min(l.starved.since(l.late, extensionsRecent*l.timeout), extensionsMost*l.timeout))
}

// staleError is the failure of a request on a connection that had been idle and ended
// without a single byte of a reply: it was closed meanwhile. That says nothing about
// the server, and the request should be made on a new connection.
type staleError struct{ error }

func (e staleError) Unwrap() error { return e.error }

// FreeRetry says that another attempt should not be charged to a retry budget.
func (staleError) FreeRetry() bool { return true }

func isStale(err error) bool {
	var stale staleError
	return errors.As(err, &stale)
}

// isEnd says whether the other side has ended a connection.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED)
}

// pooled is a connection as go-redis keeps it. Before go-redis takes one out of its
// pool it looks at the socket of a syscall.Conn: over TLS that finds out as well
// whether the server has closed the connection, which go-redis by itself does not do.
type pooled struct {
	net.Conn // the link, or TLS over it
	raw      syscall.Conn
	over     bool // TLS lies between
	born     uint64
	server   *server

	// What follows is used by one goroutine at a time.
	read    time.Time // of the latest byte; zero for none
	waiting bool      // a request was written, and nothing was read since
	idle    bool      // the connection was idle before that request
}

// idleAfter is how long nothing must have been read from a connection for it to count
// as idle. Servers and balancers close connections after a second at the earliest.
const idleAfter = 500 * time.Millisecond

// Read reads, and returns a staleError where the connection had ended while it was
// idle.
func (p *pooled) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if n > 0 {
		p.read, p.waiting = time.Now(), false
	}
	return n, p.judge(err)
}

// Write writes, with errors as Read has them.
func (p *pooled) Write(b []byte) (int, error) {
	if !p.waiting {
		p.waiting, p.idle = true, !p.read.IsZero() && time.Since(p.read) >= idleAfter
	}
	n, err := p.Conn.Write(b)
	return n, p.judge(err)
}

func (p *pooled) judge(err error) error {
	if err != nil && p.waiting && p.idle && isEnd(err) {
		return staleError{err}
	}
	return err
}

var (
	errRetired    = errors.New("the connection is retired")
	errUnexpected = errors.New("unexpected data on an idle connection")
)

// SyscallConn fails for a connection that must not be used again.
func (p *pooled) SyscallConn() (syscall.RawConn, error) {
	if p.born != p.server.generation.Load() {
		return nil, errRetired
	}
	raw, err := p.raw.SyscallConn()
	if err != nil || !p.over {
		return raw, err
	}
	return raw, peek(raw)
}

// peek fails when a connection over TLS that is idle has ended, or has anything to be
// read: that can only be its end, and go-redis would take it for a reply.
func peek(raw syscall.RawConn) error {
	var failure error
	err := raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case n > 0:
			failure = errUnexpected
		case err == nil:
			failure = io.EOF
		case !errors.Is(err, syscall.EAGAIN):
			failure = err
		}
		return true
	})
	if err != nil {
		return err
	}
	return failure
}

// server is one that connections lead to, by its address. It is shared by the lanes,
// which so have connections of the same age: what one of them learns of the server
// holds for all.
type server struct {
	addr string
	// generation is counted up to retire every connection made before.
	generation atomic.Uint64
	// retired is when retireOften last retired them, Unix nanoseconds.
	retired atomic.Int64
	// run identifies the process that the address led to last; nil for not known.
	run atomic.Pointer[string]
}

// retire makes every connection to the server be replaced before it is used again.
func (s *server) retire() { s.generation.Add(1) }

// retireOften is retire for what each call may find: at most once a second, so that
// calls do not spend their time on making connections.
func (s *server) retireOften() {
	now := time.Now().UnixNano()
	if last := s.retired.Load(); now-last >= int64(time.Second) && s.retired.CompareAndSwap(last, now) {
		s.retire()
	}
}

// identify compares the process that a new connection leads to with the one before:
// behind an address that moved, older connections still lead to the other one.
func (s *server) identify(run string) {
	if before := s.run.Swap(&run); before != nil && *before != run {
		s.retire()
	}
}

// unreached stands for a connection that could not be made: every use of it fails with
// why. go-redis counts failed dials, over the whole life of a pool. From as many as the
// pool has places on, it no longer dials, but returns the last error, for up to a second:
// also where another server has become the current one, whose breaker would open.
type unreached struct {
	net.Conn // nil
	why      error
}

// orUnreached returns a connection in any case.
func orUnreached(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return unreached{why: err}, nil //nolint:nilerr // every use of it returns the error
	}
	return conn, nil
}

func (u unreached) Read([]byte) (int, error)              { return 0, u.why }
func (u unreached) Write([]byte) (int, error)             { return 0, u.why }
func (u unreached) Close() error                          { return nil }
func (u unreached) LocalAddr() net.Addr                   { return &net.TCPAddr{} }
func (u unreached) RemoteAddr() net.Addr                  { return &net.TCPAddr{} }
func (u unreached) SetDeadline(time.Time) error           { return u.why }
func (u unreached) SetReadDeadline(time.Time) error       { return u.why }
func (u unreached) SetWriteDeadline(time.Time) error      { return u.why }
func (u unreached) SyscallConn() (syscall.RawConn, error) { return nil, u.why }

// dialer makes connections.
type dialer struct {
	timeout time.Duration
	starved *starvation
	// tls returns the configuration for a host, nil for none.
	tls func(host string) (*tls.Config, error)
}

// keepAlive is the time between TCP probes of an idle connection. It is below what
// balancers and firewalls allow, so that they do not forget the connection.
const keepAlive = 15 * time.Second

// dial connects to a server. host is the name that its certificate must have.
func (d *dialer) dial(ctx context.Context, s *server, host string) (net.Conn, error) {
	born := s.generation.Load()
	limit := d.timeout + d.starved.recent(extensionsRecent*d.timeout)
	conn, err := (&net.Dialer{Timeout: limit, KeepAlive: keepAlive}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("unexpected connection %T", conn), conn.Close())
	}
	l := &link{Conn: conn, timeout: d.timeout, starved: d.starved}
	p := &pooled{Conn: l, raw: raw, born: born, server: s}
	cfg, err := d.tls(host)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if cfg != nil {
		over := tls.Client(l, cfg)
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if err := over.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		p.Conn, p.over = over, true
	}
	return p, nil
}
