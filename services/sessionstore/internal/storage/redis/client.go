package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// conn is how the store reaches Redis: a lane for each class of operations.
// This file is the only place that knows which kind of deployment it is.
type conn struct {
	read, write *lane
	// free is for scripts that Redis runs also when its memory is full (runsWhenFull).
	// Writes that are refused then must not stop them.
	free *lane
	// stream is for what blocks and for feeds. Closing it ends a wait at once,
	// which the end of a context would not.
	stream  *lane
	cluster bool
	access  *access
	dialer  *dialer
	// endpoint follows the one server; nil for a cluster.
	endpoint *endpoint
	breakers *resilience.Registry
	login    func(ctx context.Context, refusal error)
	// servers are a cluster's, by address: map[string]*server.
	servers sync.Map
	stop    context.CancelFunc
	work    sync.WaitGroup
}

// quiet turns off go-redis's own log, which is one for the whole process and
// prints addresses at every failed dial. Failures come back as errors, and are
// logged by who gets them.
var quiet = sync.OnceFunc(logging.Disable)

// Connections are replaced before a balancer or a firewall on the way forgets them:
// the shortest idle time known is that of a load balancer which closes after a minute.
// The limited life makes them follow an address behind which another server has come
// up (see server.identify).
const (
	connMaxIdle        = 50 * time.Second
	connMaxLife        = 5 * time.Minute
	connMaxLifeScatter = time.Minute
)

// clockLag is by how much the clock may be late from which go-redis counts its own
// timeouts. The deadline of the round trip is exact, and comes first.
const clockLag = 200 * time.Millisecond

// resolver returns the addresses of a host.
type resolver func(ctx context.Context, host string) ([]string, error)

// dialOptions are what dial needs to know besides the URL.
type dialOptions struct {
	files    Access
	timeout  time.Duration
	breakers *resilience.Registry
	resolve  resolver
	// switched is called after the store has moved to another server; first where from
	// is the name that the URL has. May be nil.
	switched func(from, to string, first bool)
	// login is called when a server refuses the login of a new connection, and with nil
	// when one is accepted; may be nil.
	login func(ctx context.Context, refusal error)
}

// dial connects when first used.
func dial(raw string, o dialOptions) (*conn, error) {
	quiet()
	u, err := parseURL(raw)
	if err != nil {
		return nil, err
	}
	a, err := newAccess(o.files, u)
	if err != nil {
		return nil, err
	}
	c := &conn{cluster: u.cluster, access: a, breakers: o.breakers, login: o.login}
	c.dialer = &dialer{timeout: o.timeout, starved: measureStarvation(), tls: a.tlsConfig}
	opts := goredis.UniversalOptions{
		Addrs: u.addrs, DB: u.db, CredentialsProviderContext: a.credentials,
		// The dialer and the round trip have deadlines of their own, which come first.
		// One layer decides about retries, and it is not this one: after a lost
		// reply go-redis would send the command again, and apply it twice.
		MaxRetries: -1, DialerRetries: 1, DialTimeout: (2 + extensionsRecent) * o.timeout, ReadTimeout: o.timeout + clockLag, WriteTimeout: o.timeout + clockLag,
		ContextTimeoutEnabled: true, PoolTimeout: o.timeout,
		ConnMaxIdleTime: connMaxIdle, ConnMaxLifetime: connMaxLife, ConnMaxLifetimeJitter: connMaxLifeScatter,
		IsClusterMode: u.cluster,
		// They send commands that a user with few rights may not run, and that Redis
		// logs as refused for each connection; and notifications would make go-redis
		// dial other addresses than the dialer's.
		DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if u.cluster {
		opts.Dialer = func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(addr)
			return orUnreached(c.dialer.dial(ctx, c.server(addr), host))
		}
		opts.OnConnect = func(ctx context.Context, cn *goredis.Conn) error { return c.checkLogin(ctx, cn.Ping(ctx).Err()) }
	} else {
		c.endpoint = newEndpoint(c, u, opts, o)
		opts.Addrs, opts.Dialer, opts.OnConnect = u.addrs[:1], c.endpoint.dial, c.endpoint.onConnect
	}
	var errs [4]error
	c.read, errs[0] = newLane(c, ClassRead, opts, o.timeout, o.breakers)
	c.write, errs[1] = newLane(c, ClassWrite, opts, o.timeout, o.breakers)
	c.stream, errs[2] = newLane(c, ClassStream, opts, tailBlock+o.timeout, o.breakers)
	c.free, errs[3] = newLane(c, ClassFree, opts, o.timeout, o.breakers)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, errors.Join(err, c.close())
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	if c.endpoint != nil {
		c.work.Go(func() { c.endpoint.watch(ctx) })
	} else {
		c.work.Go(func() { c.watchNodes(ctx) })
	}
	return c, nil
}

// loginError is the first reply on a new connection that was not logged in: go-redis
// goes on without a login where it has no password.
type loginError struct{ error }

func (e loginError) Unwrap() error { return e.error }

// checkLogin reports whether the first reply on a new connection accepts its login.
func (c *conn) checkLogin(ctx context.Context, first error) error {
	var reply goredis.Error
	if errors.As(first, &reply) && hasCode(reply.Error(), []string{"NOAUTH"}) {
		return fmt.Errorf("log in: %w", loginError{first}) // go-redis unwraps it once
	}
	if first == nil {
		c.reportLogin(ctx, nil)
	}
	return nil
}

func (c *conn) reportLogin(ctx context.Context, refusal error) {
	if c.login != nil {
		c.login(ctx, refusal)
	}
}

// lanes are those that were made.
func (c *conn) lanes() []*lane {
	var out []*lane
	for _, l := range []*lane{c.stream, c.read, c.write, c.free} {
		if l != nil {
			out = append(out, l)
		}
	}
	return out
}

// nodeName returns the address of the server that a client of a lane leads to.
func (c *conn) nodeName(client *goredis.Client) string {
	if c.endpoint != nil {
		return c.endpoint.current.Load().addr
	}
	return client.Options().Addr
}

// server returns that of an address of a cluster.
func (c *conn) server(addr string) *server {
	s, _ := c.servers.LoadOrStore(addr, &server{addr: addr})
	return s.(*server) //nolint:forcetypeassert // it holds nothing else
}

func (c *conn) close() error {
	if c.stop != nil {
		c.stop()
	}
	var errs []error
	for _, l := range c.lanes() {
		errs = append(errs, l.close())
	}
	if c.endpoint != nil {
		errs = append(errs, c.endpoint.close())
	}
	c.work.Wait()
	c.dialer.starved.close()
	return errors.Join(errs...)
}
