package redistest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// frontTick is how often a front looks for idle connections.
const frontTick = 20 * time.Millisecond

// FrontOptions are what stands between a client and a server.
type FrontOptions struct {
	// TLS is what the front speaks to clients; plain TCP if nil.
	TLS *tls.Config
	// Idle ends connections that carry nothing for so long; 0 for never.
	Idle time.Duration
	// Forget makes the end of an idle connection silent, as a balancer's is: the
	// client learns of it by a reset of the next bytes that it sends. Otherwise the
	// connection is closed at once, as a server with a timeout does.
	Forget bool
}

// Front accepts connections on an address of its own and passes them on to a server,
// which can be changed: connections that are there stay with the former one, as those
// of clients of a host name do when the name moves.
type Front struct {
	// Addr is host:port.
	Addr string

	opts     FrontOptions
	target   atomic.Pointer[string]
	listener net.Listener
	work     sync.WaitGroup
	idle     atomic.Int64

	mu     sync.Mutex
	closed bool
	links  []*link
}

// link is a connection of a client, and the one to the server.
type link struct {
	client, server net.Conn
	// tcp is client below TLS.
	tcp *net.TCPConn
	// target is the server's address.
	target    string
	last      atomic.Int64 // when something was carried, in Unix ns
	forgotten atomic.Bool
	ended     atomic.Bool
}

// StartFront starts a front of the server at an address until the test ends.
func StartFront(t testing.TB, addr string, opts FrontOptions) *Front {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{Addr: l.Addr().String(), opts: opts, listener: l}
	f.Point(addr)
	stop := make(chan struct{})
	f.work.Go(f.accept)
	if opts.Idle > 0 {
		f.work.Go(func() { f.endIdle(stop) })
	}
	t.Cleanup(func() {
		_ = l.Close()
		close(stop)
		f.closeAll()
		f.work.Wait()
	})
	return f
}

// Point sends new connections to another address; those that are there stay.
func (f *Front) Point(addr string) { f.target.Store(&addr) }

// IdleEnded is how many connections were ended because they were idle.
func (f *Front) IdleEnded() int64 { return f.idle.Load() }

// Connected is how many connections to a server are there now.
func (f *Front) Connected(addr string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, l := range f.links {
		if l.target == addr {
			n++
		}
	}
	return n
}

func (f *Front) accept() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return // closed
		}
		f.work.Go(func() { f.serve(conn) })
	}
}

func (f *Front) serve(conn net.Conn) {
	l := &link{client: conn, target: *f.target.Load()}
	l.tcp, _ = conn.(*net.TCPConn)
	if f.opts.TLS != nil {
		l.client = tls.Server(conn, f.opts.TLS)
	}
	server, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", l.target)
	if err != nil {
		_ = conn.Close()
		return
	}
	l.server = server
	l.last.Store(time.Now().UnixNano())
	if !f.add(l) {
		l.end()
		return
	}
	defer f.remove(l)
	var back sync.WaitGroup
	back.Go(func() {
		l.carry(l.client, l.server)
		if !l.forgotten.Load() {
			l.end()
		}
	})
	l.carry(l.server, l.client)
	l.end()
	back.Wait()
}

// carry copies until one side ends, or until bytes come for a connection that was
// forgotten.
func (l *link) carry(to io.Writer, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if l.forgotten.Load() {
				return
			}
			l.last.Store(time.Now().UnixNano())
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// end closes both sides; a forgotten connection is reset.
func (l *link) end() {
	if l.ended.Swap(true) {
		return
	}
	if l.forgotten.Load() {
		_ = l.tcp.SetLinger(0)
		_ = l.tcp.Close()
	}
	_ = errors.Join(l.client.Close(), l.server.Close())
}

// forget drops the server's side, and keeps the client's until bytes come.
func (l *link) forget() {
	l.forgotten.Store(true)
	_ = l.server.Close()
}

func (f *Front) endIdle(stop <-chan struct{}) {
	tick := time.NewTicker(frontTick)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		links := slices.Clone(f.links)
		f.mu.Unlock()
		for _, l := range links {
			if l.forgotten.Load() || l.ended.Load() || time.Since(time.Unix(0, l.last.Load())) < f.opts.Idle {
				continue
			}
			f.idle.Add(1)
			if f.opts.Forget {
				l.forget()
			} else {
				l.end()
			}
		}
	}
}

func (f *Front) add(l *link) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.links = append(f.links, l)
	return true
}

func (f *Front) remove(l *link) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.links = slices.DeleteFunc(f.links, func(other *link) bool { return other == l })
}

func (f *Front) closeAll() {
	f.mu.Lock()
	f.closed = true
	links := slices.Clone(f.links)
	f.mu.Unlock()
	for _, l := range links {
		l.end()
	}
}
