// This file goes when url.go is merged.
package redis

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

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
