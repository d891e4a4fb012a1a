package redis

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode"
)

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://localhost":                             "{[localhost:6379]   0  false false}",
		"redis://localhost/":                            "{[localhost:6379]   0  false false}",
		"redis://127.0.0.1:7000/3":                      "{[127.0.0.1:7000]   3  false false}",
		"redis://ann:p%40ss@h:1":                        "{[h:1] ann p@ss 0  false false}",
		"redis://:a:b%2Fc%23%3F%25d@h:1/2":              "{[h:1]  a:b/c#?%d 2  false false}",
		"redis://ann@h:1":                               "{[h:1] ann  0  false false}",
		"rediss://h:1":                                  "{[h:1]   0  false true}",
		"redis://a:1,b:2,c:3":                           "{[a:1 b:2 c:3]   0  true false}",
		"redis://a:1,b:2/0":                             "{[a:1 b:2]   0  true false}",
		"redis+cluster://a:1":                           "{[a:1]   0  true false}",
		"rediss+cluster://ann:x@a_b.example-c:1/0":      "{[a_b.example-c:1] ann x 0  true true}",
		"redis+sentinel://:secret@a:26380,b/mymaster/2": "{[a:26380 b:26379]  secret 2 mymaster false false}",
		"rediss+sentinel://a/my%20master":               "{[a:26379]   0 my master false true}",
		"redis://[::1]:6380/0":                          "{[[::1]:6380]   0  false false}",
		"redis://[fe80::1%25eth0],[::2]":                "{[[fe80::1%eth0]:6379 [::2]:6379]   0  true false}",
	} {
		got, err := parseURL(raw)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v %v, want %s", raw, got, err, want)
		}
	}
}

// malformedURLs are URLs, and a part of the error for each.
var malformedURLs = map[string]string{
	"":                                "it is empty",
	"localhost:6379":                  "no scheme; expected the scheme redis, rediss, redis+cluster",
	"ann:s3cr3tpw@h:1":                "no scheme",
	"http://h":                        "unknown scheme; expected the scheme redis, rediss, redis+cluster, rediss+cluster, redis+sentinel or rediss+sentinel",
	"redisss://h":                     "unknown scheme",
	"Redis://h":                       "unknown scheme",
	"ann:s3cr3tpw@h://x":              "unknown scheme",
	" redis://h":                      "whitespace",
	"redis://h\n":                     "whitespace",
	"redis://ann:s3cr 3tpw@h":         "whitespace",
	"redis://":                        "no host",
	"redis://:6379":                   "no host",
	"redis://ann:s3cr3tpw@":           "no host",
	"redis://ann:s3cr3tpw@:6379":      "no host",
	"redis://a,,b":                    "host 2 of 3: no host",
	"redis://a:1,":                    "host 2 of 2: no host",
	"redis://ann:s3cr3tpw":            "the port is not a number from 1 to 65535 (a login ends with '@')",
	"redis://h:":                      "the port is not a number",
	"redis://h:0":                     "the port is not a number",
	"redis://h:65536":                 "the port is not a number",
	"redis://h:+1":                    "the port is not a number",
	"redis://a:1,h:1x":                "host 2 of 2: the port is not a number",
	"redis://h/x":                     "the database is not a number from 0 up",
	"redis://h/-1":                    "the database is not a number",
	"redis://h/1/2":                   "the database is not a number",
	"redis://a,b/1":                   "a database after several hosts",
	"redis+cluster://a/1":             "a cluster has database 0 only; expected redis+cluster://",
	"redis+sentinel://a":              "no name of the master; expected redis+sentinel://",
	"redis+sentinel://a/":             "no name of the master",
	"redis+sentinel://a/m/x":          "the database is not a number",
	"redis+sentinel://a/m%zz":         "malformed escape in the name of the master",
	"redis://::1:6379":                "an IPv6 address must be in brackets, as in [::1]:6379",
	"redis://[::1":                    "malformed IPv6 address in brackets",
	"redis://[::1]6379":               "malformed IPv6 address in brackets",
	"redis://[127.0.0.1]:6379":        "malformed IPv6 address in brackets",
	"redis://h%20x":                   "a character that no host name has",
	"redis://ann:s3cr/3tpw@h:1":       "a '/' in the user or password must be written as %2F",
	"redis://ann:/s3cr3tpw@h:1":       "a '/' in the user or password must be written as %2F",
	"redis://ann:s3cr#3tpw@h:1":       "a '#' in the user or password must be written as %23",
	"redis://ann:s3cr?3tpw@h:1":       "a '?' in the user or password must be written as %3F",
	"redis://ann:s3cr@3tpw@h:1":       "a '@' in the user or password must be written as %40",
	"redis://ann:s3cr@3/tpw@h:1":      "a '/' in the user or password must be written as %2F",
	"redis://ann:s3cr%3tpw@h:1":       "a '%' in the user or password must be written as %25",
	"redis://ann:s3cr3tpw%@h:1":       "a '%' in the user or password must be written as %25",
	"redis://%zz:s3cr3tpw@h":          "a '%' in the user or password must be written as %25",
	"redis://h:1?protocol=3":          "unknown query parameters",
	"redis://h:1/0?":                  "unknown query parameters",
	"redis://ann:s3cr3tpw@h/0?db=1":   "unknown query parameters",
	"redis://h:1#x":                   "a '#' where nothing may follow",
	"redis+sentinel://:s3cr3tpw@a/m?": "unknown query parameters",
}

func TestMalformedURLsAreRefused(t *testing.T) {
	for raw, want := range malformedURLs {
		_, err := parseURL(raw)
		if err == nil || !strings.HasPrefix(err.Error(), "--redis-url: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", raw, err, want)
			continue
		}
		if leak := leaked(err, "s3cr3tpw"); leak != "" {
			t.Errorf("%q: %v repeats %q of the password", raw, err, leak)
		}
	}
}

// leakLength is how much of a password makes a leak.
const leakLength = 5

// leaked returns a part of the secret that an error repeats, and that is in no error
// about a URL without a password.
func leaked(err error, secret string) string {
	for at := 0; at+leakLength <= len(secret); at++ {
		part := secret[at : at+leakLength]
		if strings.Contains(err.Error(), part) && !strings.Contains(harmlessErrors(), part) {
			return part
		}
	}
	return ""
}

// harmlessErrors are the texts of all errors.
var harmlessErrors = sync.OnceValue(func() string {
	var all strings.Builder
	for raw := range malformedURLs {
		if _, err := parseURL(strings.NewReplacer("s3cr", "1", "3tpw", "1").Replace(raw)); err != nil {
			fmt.Fprintln(&all, err)
		}
	}
	return all.String()
})

// FuzzParseURL: an error never repeats a password, wherever something else in the
// URL is wrong, and an accepted URL has addresses of a host and a port.
func FuzzParseURL(f *testing.F) {
	f.Add("redis://ann:", "s3cr3tpw", "@h:1/0")
	f.Add("redis+sentinel://:", "s3/cr3@tpw", "@a,b/m/1")
	f.Add("redis://", "12345678", "")
	f.Add("", "s3cr3tpw", "://h")
	f.Add("redis://h:1/", "s3cr3tpw", "")
	f.Add("redis://h:1?", "s3cr3tpw", "=1")
	f.Add("redis://ann:%", "zzs3cr3tpw", "@h:1")
	f.Add("redis://[", "s3cr3tpw", "]")
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		raw := before + secret + after
		got, err := parseURL(raw)
		if err != nil {
			if leak := leaked(err, secret); leak != "" {
				t.Errorf("%q: %v repeats %q of the secret", raw, err, leak)
			}
			return
		}
		if len(got.addrs) == 0 || got.db < 0 {
			t.Errorf("%q is read as %+v", raw, got)
		}
		for _, addr := range got.addrs {
			host, port, err := net.SplitHostPort(addr)
			n, perr := strconv.Atoi(port)
			if err != nil || perr != nil || host == "" || n < 1 || n > 65535 || strings.ContainsFunc(host, unicode.IsSpace) {
				t.Errorf("%q has the address %q", raw, addr)
			}
		}
	})
}
