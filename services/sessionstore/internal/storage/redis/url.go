package redis

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// target is a parsed URL.
type target struct {
	addrs          []string
	user, password string
	db             int
	master         string
	cluster, tls   bool
}

// Default ports of Redis and of Sentinel.
const (
	redisPort    = "6379"
	sentinelPort = "26379"
)

// forms are the known schemes without TLS, and what a URL of each looks like.
var forms = map[string]string{
	"redis":          "redis://[user:password@]host[:port][/db], or redis://[user:password@]host:port,host:port,... for a cluster",
	"redis+cluster":  "redis+cluster://[user:password@]host[:port][,host:port,...]",
	"redis+sentinel": "redis+sentinel://[user:password@]host[:port][,host:port,...]/master[/db]",
}

// parseURL parses a URL of one of these forms; rediss instead of redis means TLS:
//
//	redis://[user:password@]host[:port][/db]                     one server
//	redis://[user:password@]host:port,host:port,...              a cluster
//	redis+cluster://[user:password@]host[:port][,...]            a cluster
//	redis+sentinel://[user:password@]host[:port][,...]/master[/db]
//
// An error never repeats a part of the URL: with a forgotten or unescaped character,
// any part may be one of the password.
func parseURL(raw string) (target, error) {
	scheme, rest, found := strings.Cut(raw, "://")
	plain := strings.Replace(scheme, "rediss", "redis", 1)
	form, known := forms[plain]
	if !known {
		form = "the scheme redis, rediss, redis+cluster, rediss+cluster, redis+sentinel or rediss+sentinel"
	}
	bad := func(why string) (target, error) {
		return target{}, fmt.Errorf("--redis-url: %s; expected %s", why, form)
	}
	switch {
	case raw == "":
		return bad("it is empty")
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return bad("it has whitespace or a control character")
	case !found:
		return bad("no scheme")
	case !known:
		return bad("unknown scheme")
	}
	t := target{tls: plain != scheme}
	sentinel := plain == "redis+sentinel"
	login, hosts, path, err := splitURL(rest)
	if err == nil {
		t.user, t.password, err = parseLogin(login)
	}
	if err == nil {
		port := redisPort
		if sentinel {
			port = sentinelPort
		}
		t.addrs, err = parseHosts(hosts, port)
	}
	if err == nil {
		t.cluster = plain == "redis+cluster" || plain == "redis" && len(t.addrs) > 1
		err = t.parsePath(path, sentinel)
	}
	if err != nil {
		return bad(err.Error())
	}
	return t, nil
}

// splitURL splits what follows the scheme. net/url takes one host; a list of hosts
// is split here.
func splitURL(rest string) (login, hosts, path string, err error) {
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	at := strings.LastIndexByte(authority, '@')
	switch {
	case strings.Contains(tail, "@"):
		// What ends the login here is a part of it, or the master's name has an '@'.
		return "", "", "", escapeError(tail[0])
	case strings.Count(authority, "@") > 1:
		return "", "", "", escapeError('@')
	case strings.Contains(tail, "#"):
		return "", "", "", fmt.Errorf("a '#' where nothing may follow (in a user or password, %w)", escapeError('#'))
	case strings.Contains(tail, "?"):
		return "", "", "", errors.New("unknown query parameters: no parameter is known, use flags such as --redis-timeout")
	case at < 0:
		return "", authority, tail, nil
	default:
		return authority[:at+1], authority[at+1:], tail, nil
	}
}

// escapeError says how a character that has a meaning in URLs is written in a login.
func escapeError(c byte) error {
	return fmt.Errorf("a '%c' in the user or password must be written as %%%02X", c, c)
}

// parseLogin parses "user:password@", which may be empty.
func parseLogin(login string) (user, password string, err error) {
	if login == "" {
		return "", "", nil
	}
	user, password, _ = strings.Cut(strings.TrimSuffix(login, "@"), ":")
	var errs [2]error
	user, errs[0] = url.PathUnescape(user)
	password, errs[1] = url.PathUnescape(password)
	if errs[0] != nil || errs[1] != nil {
		return "", "", escapeError('%') // theirs repeats what follows the '%'
	}
	return user, password, nil
}

func parseHosts(list, defaultPort string) ([]string, error) {
	var addrs []string
	hosts := strings.Split(list, ",")
	for i, host := range hosts {
		addr, err := parseHost(host, defaultPort)
		if err != nil {
			if len(hosts) > 1 {
				err = fmt.Errorf("host %d of %d: %w", i+1, len(hosts), err)
			}
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

func parseHost(host, defaultPort string) (string, error) {
	var name, port string
	var hasPort bool
	switch {
	case strings.HasPrefix(host, "["):
		inner, after, closed := strings.Cut(host[1:], "]")
		inner, unescaped := url.PathUnescape(inner) // a zone is written as %25eth0
		ip, err := netip.ParseAddr(inner)
		if !closed || unescaped != nil || err != nil || !ip.Is6() || after != "" && after[0] != ':' {
			return "", errors.New("malformed IPv6 address in brackets")
		}
		name = inner
		port, hasPort = strings.CutPrefix(after, ":")
	case strings.Count(host, ":") > 1:
		return "", errors.New("an IPv6 address must be in brackets, as in [::1]:6379")
	default:
		name, port, hasPort = strings.Cut(host, ":")
		if strings.ContainsFunc(name, notInHost) {
			return "", errors.New("a character that no host name has")
		}
	}
	if name == "" {
		return "", errors.New("no host")
	}
	if !hasPort {
		port = defaultPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("the port is not a number from 1 to 65535 (a login ends with '@')")
	}
	return net.JoinHostPort(name, port), nil
}

func notInHost(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '.' && r != '_'
}

// parsePath parses "/master/db" or "/db", each of which may be missing where it is
// not needed.
func (t *target) parsePath(path string, sentinel bool) error {
	path = strings.TrimPrefix(path, "/")
	if sentinel {
		name, rest, _ := strings.Cut(path, "/")
		var err error
		if t.master, err = url.PathUnescape(name); err != nil {
			return errors.New("malformed escape in the name of the master")
		}
		if t.master == "" {
			return errors.New("no name of the master")
		}
		path = rest
	}
	if path == "" {
		return nil
	}
	db, err := strconv.Atoi(path)
	switch {
	case err != nil || db < 0:
		return errors.New("the database is not a number from 0 up (a '/' in a password must be written as %2F)")
	case t.cluster && db != 0 && len(t.addrs) > 1:
		return errors.New("a database after several hosts: they are a cluster, which has database 0 only")
	case t.cluster && db != 0:
		return errors.New("a cluster has database 0 only")
	}
	t.db = db
	return nil
}
