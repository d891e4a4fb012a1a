package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// endpoint is the one server that the store uses where it is no cluster: behind a host
// name, or the master that Sentinel names. All lanes use the same one at a time, so
// that nobody reads from one server what was written to another.
type endpoint struct {
	conn *conn
	opts goredis.UniversalOptions
	// host is that of the URL; empty with Sentinel.
	host string
	// locate returns the addresses that the name stands for now, and whether that is sure:
	// not where fewer than most of the Sentinels say so.
	locate func(ctx context.Context) (addrs []string, sure bool, err error)
	// every is the time between two looks at the name; 0 where it is an address, so
	// that only the role of the server is looked at.
	every    time.Duration
	sentinel *sentinels
	breakers *resilience.Registry
	switched func(from, to string, first bool)

	current atomic.Pointer[server]
	// suspect asks the watch to look at once: the current server does not answer, or is no
	// master.
	suspect chan struct{}
	// norole: the login may not call ROLE.
	norole atomic.Bool
}

const (
	resolveEvery  = 2 * time.Second
	sentinelEvery = 500 * time.Millisecond
	// roleEvery is the time between two looks at the role of the server.
	roleEvery = time.Second
	// lookPause is the least time between two looks at the name.
	lookPause = 100 * time.Millisecond
)

func newEndpoint(c *conn, u target, opts goredis.UniversalOptions, o dialOptions) *endpoint {
	e := &endpoint{conn: c, opts: opts, breakers: o.breakers, switched: o.switched, suspect: make(chan struct{}, 1)}
	if u.master != "" {
		e.sentinel = newSentinels(c, u, opts)
		e.locate, e.every = e.sentinel.master, sentinelEvery
		e.current.Store(&server{addr: u.master})
		return e
	}
	host, port, _ := net.SplitHostPort(u.addrs[0])
	e.host = host
	e.current.Store(&server{addr: u.addrs[0]})
	if net.ParseIP(host) != nil {
		e.locate = func(context.Context) ([]string, bool, error) { return u.addrs[:1], true, nil }
		return e
	}
	e.every = resolveEvery
	e.locate = func(ctx context.Context) ([]string, bool, error) {
		ips, err := o.resolve(ctx, host)
		if err != nil {
			return nil, false, err
		}
		addrs := make([]string, len(ips))
		for i, ip := range ips {
			addrs[i] = net.JoinHostPort(ip, port)
		}
		slices.Sort(addrs)
		return addrs, true, nil
	}
	return e
}

// named says whether the current server is still a name that was never resolved.
func (e *endpoint) named() bool {
	return !isAddress(e.current.Load().addr)
}

// isAddress says whether addr has an IP address, and no name.
func isAddress(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && net.ParseIP(host) != nil
}

// dial connects to the current server.
func (e *endpoint) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if e.named() {
		if err := e.look(ctx, false); err != nil {
			return orUnreached(nil, err)
		}
	}
	for {
		s := e.current.Load()
		conn, err := e.connect(ctx, s)
		if err != nil {
			e.suspectServer()
		} else if e.current.Load() != s { // the store has moved meanwhile
			_ = conn.Close()
			continue
		}
		return orUnreached(conn, err)
	}
}

func (e *endpoint) connect(ctx context.Context, s *server) (net.Conn, error) {
	host := e.host
	if host == "" {
		host, _, _ = net.SplitHostPort(s.addr)
	}
	return e.conn.dialer.dial(ctx, s, host)
}

// suspectServer asks for a look at the name.
func (e *endpoint) suspectServer() {
	select {
	case e.suspect <- struct{}{}:
	default:
	}
}

// replicaError says that a server is no master: what is written there is refused, and
// what is read there may be old.
type replicaError struct{ addr, role string }

func (r *replicaError) Error() string {
	return fmt.Sprintf("%s has the role %q, want a master", r.addr, storage.Shorten(r.role))
}

// onConnect looks at who answers on a new connection, before it is used.
func (e *endpoint) onConnect(ctx context.Context, cn *goredis.Conn) error {
	s := e.current.Load()
	pipe := cn.Pipeline()
	role, info := pipe.Do(ctx, "role"), pipe.Info(ctx, "server")
	_, _ = pipe.Exec(ctx) // each has its own error
	if run := parseInfo(info.Val())["run_id"]; run != "" {
		s.identify(run)
	}
	if err := e.conn.checkLogin(ctx, role.Err()); err != nil {
		return err
	}
	err := e.checkRole(s, role)
	if err != nil {
		e.suspectServer()
	}
	return err
}

// checkRole fails for a server that is no master, and for one that did not answer.
func (e *endpoint) checkRole(s *server, role *goredis.Cmd) error {
	reply, err := role.Slice()
	var refused goredis.Error
	if errors.As(err, &refused) {
		// The rights of the login are checked elsewhere; all else is no matter of the role.
		e.norole.Store(hasCode(refused.Error(), []string{"NOPERM"}))
		return nil
	}
	if err != nil {
		return err
	}
	if len(reply) > 0 {
		if name, _ := reply[0].(string); name != "" && name != "master" {
			return &replicaError{s.addr, name}
		}
	}
	return nil
}

// watch follows the name, and the role of the server, until ctx ends.
func (e *endpoint) watch(ctx context.Context) {
	role := time.NewTicker(roleEvery)
	defer role.Stop()
	var name <-chan time.Time
	if e.every > 0 {
		t := time.NewTicker(e.every)
		defer t.Stop()
		name = t.C
	}
	for {
		suspect := false
		select {
		case <-ctx.Done():
			return
		case <-role.C:
			e.probe(ctx)
			continue
		case <-name:
		case <-e.suspect:
			suspect = true
		}
		if e.every > 0 {
			_ = e.look(ctx, suspect) // the calls that need the server report its errors
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookPause):
		}
	}
}

// probe asks the current server for its role. Where a breaker is due for a probe it is
// one, so that the breaker of a server that nobody calls is closed as well; else it does
// not count, as it would open a breaker that no call has met.
func (e *endpoint) probe(ctx context.Context) {
	for _, l := range e.conn.lanes() {
		l.single.probe(func() error { return l.client.Process(ctx, l.probeCommand(ctx)) })
	}
	if e.conn.read.single.breaker.Load().Status().State != resilience.Closed {
		return
	}
	ctx = pastBreakers(ctx)
	cmd := goredis.NewCmd(ctx, "role")
	if e.norole.Load() {
		cmd = goredis.NewCmd(ctx, "ping")
	}
	s := e.current.Load()
	if err := e.conn.read.client.Process(ctx, cmd); err != nil || e.norole.Load() {
		return
	}
	if e.checkRole(s, cmd) != nil {
		s.retire()
		e.suspectServer()
	}
}

// look finds the server that the name stands for. It moves to another one that was
// found to be a master: where the name no longer stands for the current one, or where
// that is suspect.
func (e *endpoint) look(ctx context.Context, suspect bool) error {
	ctx, cancel := context.WithTimeout(ctx, 4*e.conn.dialer.timeout)
	defer cancel()
	addrs, sure, err := e.locate(ctx)
	if err != nil {
		return err
	}
	now := e.current.Load()
	known := slices.Contains(addrs, now.addr)
	if known && !suspect {
		return nil
	}
	if e.named() && len(addrs) == 1 {
		e.move(now, addrs[0]) // there is no choice
		return nil
	}
	if !sure && !e.named() && e.verify(ctx, now.addr) == nil {
		return nil // a Sentinel that is behind, or cut off, while the others do not answer
	}
	var failed error
	for _, addr := range addrs {
		if addr == now.addr {
			continue
		}
		if err := e.verify(ctx, addr); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		e.move(now, addr)
		return nil
	}
	return failed
}

// verify says whether a server answers as a master.
func (e *endpoint) verify(ctx context.Context, addr string) error {
	s := &server{addr: addr}
	opts := e.opts
	opts.Addrs, opts.OnConnect, opts.PoolSize = []string{addr}, nil, 1
	opts.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) { return orUnreached(e.connect(ctx, s)) }
	client := goredis.NewClient(opts.Simple())
	cmd := goredis.NewCmd(ctx, "role")
	err := client.Process(ctx, cmd)
	var refused goredis.Error
	if !errors.As(err, &refused) || hasCode(refused.Error(), []string{"NOPERM", "ERR unknown command"}) {
		err = e.checkRole(s, cmd)
	} // else it refused the login, say, and so has said nothing of its role
	return errors.Join(err, client.Close())
}

// move makes another server the current one. Its breakers are closed, as they are new;
// those of the one before go.
func (e *endpoint) move(from *server, addr string) {
	to := &server{addr: addr}
	if !e.current.CompareAndSwap(from, to) {
		return // somebody else was faster
	}
	for _, l := range e.conn.lanes() {
		l.single.breaker.Store(e.breakers.Breaker(l.class, addr))
	}
	e.breakers.Drop(from.addr)
	from.retire()
	if e.switched != nil {
		e.switched(from.addr, addr, !isAddress(from.addr))
	}
}

func (e *endpoint) close() error {
	if e.sentinel != nil {
		return e.sentinel.close()
	}
	return nil
}
