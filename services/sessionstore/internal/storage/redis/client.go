package redis

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// conn is how the store reaches Redis: a lane for each class of operations.
// This file is the only place that knows which kind of deployment it is.
type conn struct {
	read, write *lane
	// stream is for what blocks and for feeds. Closing it ends a wait at once,
	// which the end of a context would not.
	stream  *lane
	cluster bool
}

// quiet turns off go-redis's own log, which is one for the whole process and
// prints addresses at every failed dial. Failures come back as errors, and are
// logged by who gets them.
var quiet = sync.OnceFunc(logging.Disable)

// dial parses a URL and connects when first used:
//
//	redis://[user:password@]host:port/db           one server
//	redis://host:port,host:port,...                a cluster
//	redis+sentinel://host:port,.../master/db       behind Sentinel
//
// rediss instead of redis speaks TLS.
func dial(raw string, timeout time.Duration, breakers *resilience.Registry) (*conn, error) {
	quiet()
	u, err := parseURL(raw)
	if err != nil {
		return nil, err
	}
	opts := goredis.UniversalOptions{
		Addrs: u.addrs, DB: u.db, Username: u.user, Password: u.password, MasterName: u.master,
		// One layer decides about retries, and it is not this one: after a lost
		// reply go-redis would send the command again, and apply it twice.
		MaxRetries: -1, DialerRetries: 1, DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout,
		ContextTimeoutEnabled: true, PoolTimeout: timeout,
		IsClusterMode: u.cluster,
	}
	if u.tls {
		opts.TLSConfig = tlsConfig()
	}
	c := &conn{cluster: u.cluster}
	var errs [3]error
	c.read, errs[0] = newLane(ClassRead, opts, timeout, breakers)
	c.write, errs[1] = newLane(ClassWrite, opts, timeout, breakers)
	c.stream, errs[2] = newLane(ClassStream, opts, tailBlock+timeout, breakers)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

type target struct {
	addrs          []string
	user, password string
	db             int
	master         string
	cluster, tls   bool
}

func parseURL(raw string) (target, error) {
	bad := func(why string) (target, error) {
		// Never the URL itself: it may hold a password.
		return target{}, fmt.Errorf("--redis-url: %s; expected redis://[user:password@]host:port/db", why)
	}
	scheme, rest, found := strings.Cut(raw, "://")
	if !found {
		return bad("no scheme")
	}
	// net/url takes one host; the list of hosts is parsed here.
	rest, path, _ := strings.Cut(rest, "/")
	var t target
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		u, err := url.Parse("redis://" + rest[:i+1] + "host")
		if err != nil {
			return bad("malformed user or password")
		}
		t.user = u.User.Username()
		t.password, _ = u.User.Password()
		rest = rest[i+1:]
	}
	for _, a := range strings.Split(rest, ",") {
		if a == "" {
			return bad("no host")
		}
		if !strings.Contains(a[strings.LastIndexByte(a, ']')+1:], ":") {
			a += ":6379"
		}
		t.addrs = append(t.addrs, a)
	}
	switch scheme {
	case "redis", "rediss":
		t.cluster = len(t.addrs) > 1
	case "redis+cluster", "rediss+cluster":
		t.cluster = true
	case "redis+sentinel", "rediss+sentinel":
		t.master, path, _ = strings.Cut(path, "/")
		if t.master == "" {
			return bad("no name of the master")
		}
	default:
		return bad(fmt.Sprintf("unknown scheme %q", scheme))
	}
	t.tls = strings.HasPrefix(scheme, "rediss")
	if path != "" {
		db, err := strconv.Atoi(path)
		if err != nil || db < 0 {
			return bad("the database is not a number")
		}
		if t.cluster && db != 0 {
			return bad("a cluster has no databases")
		}
		t.db = db
	}
	return t, nil
}

func (c *conn) close() error {
	var errs []error
	for _, l := range []*lane{c.stream, c.read, c.write} {
		if l != nil {
			errs = append(errs, l.close())
		}
	}
	return errors.Join(errs...)
}

func tlsConfig() *tls.Config { return &tls.Config{MinVersion: tls.VersionTLS12} }
