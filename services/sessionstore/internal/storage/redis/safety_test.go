package redis_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// watchful makes a store check the servers often.
func watchful(o *redis.Options) { o.SetCheckEvery(50 * time.Millisecond) }

// persistent are arguments of a server whose settings are all safe.
var persistent = []string{"--appendonly", "yes"}

// warningOf returns the message of a warning about a server, "" for none.
func warningOf(t testing.TB, s *redis.Store, code, node string) string {
	t.Helper()
	for _, w := range s.Status(t.Context()).Warnings {
		if w.Code == code && w.Node == node {
			return w.Message
		}
	}
	return ""
}

func awaitWarning(t testing.TB, s *redis.Store, code, node string, parts ...string) {
	t.Helper()
	storagetest.Until(t, fmt.Sprintf("%s of %s warns of %q", code, node, parts), func() bool {
		m := warningOf(t, s, code, node)
		return m != "" && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(m, part) })
	})
}

func awaitNoWarning(t testing.TB, s *redis.Store, code, node string) {
	t.Helper()
	storagetest.Until(t, fmt.Sprintf("%s of %s is cleared", code, node), func() bool { return warningOf(t, s, code, node) == "" })
}

func setConfig(t testing.TB, client *goredis.Client, name, value string) {
	t.Helper()
	if err := client.ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestEvictionPolicyWarns(t *testing.T) {
	for _, policy := range []string{
		"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl", "noeviction",
	} {
		t.Run(policy, func(t *testing.T) {
			server := redistest.Start(t, append([]string{"--maxmemory-policy", policy, "--maxmemory", "100mb"}, persistent...)...)
			s, client := open(t, server.URL(), watchful), raw(t, server)
			if policy == "noeviction" {
				if all := s.Status(t.Context()).Warnings; len(all) != 0 {
					t.Fatalf("a safe server: %+v", all)
				}
				return
			}
			// The check at the start has raised it.
			if m := warningOf(t, s, "eviction-policy", server.Addr); !strings.Contains(m, "maxmemory-policy is "+policy) || !strings.Contains(m, "set maxmemory-policy noeviction") {
				t.Errorf("at the start: %q", m)
			}
			setConfig(t, client, "maxmemory-policy", "noeviction")
			awaitNoWarning(t, s, "eviction-policy", server.Addr)
			setConfig(t, client, "maxmemory-policy", policy)
			awaitWarning(t, s, "eviction-policy", server.Addr, policy)
		})
	}
}

func TestPersistenceWarns(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string // "" for no warning
	}{
		"neither":            {nil, "loses all sessions"},
		"snapshots only":     {[]string{"--save", "3600 1 300 100"}, `save is "3600 1 300 100"`},
		"log":                {[]string{"--appendonly", "yes"}, ""},
		"log and snapshots":  {[]string{"--appendonly", "yes", "--save", "60 1"}, ""},
		"log without a sync": {[]string{"--appendonly", "yes", "--appendfsync", "no"}, "appendfsync is no"},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, c.args...)
			s := open(t, server.URL())
			m := warningOf(t, s, "persistence", server.Addr)
			if (m == "") != (c.want == "") || !strings.Contains(m, c.want) {
				t.Errorf("warning %q, want %q", m, c.want)
			}
		})
	}
}

// TestEvictionsAreCounted: keys that Redis evicts while the store runs are reported
// with their number.
func TestEvictionsAreCounted(t *testing.T) {
	server := redistest.Start(t, append([]string{"--maxmemory-policy", "allkeys-lru"}, persistent...)...)
	s, client := open(t, server.URL(), watchful), raw(t, server)
	for n := range 100 {
		create(t, s, newSession(n%storagetest.Shards, "ann", time.Hour), "")
	}
	if m := warningOf(t, s, "evictions", server.Addr); m != "" {
		t.Errorf("before any: %q", m)
	}
	setConfig(t, client, "maxmemory", "1")
	// Any write makes it evict.
	storagetest.Until(t, "keys are evicted", func() bool {
		_ = client.Set(t.Context(), "other", "x", 0).Err()
		return infoField(t, client, "stats", "evicted_keys") != "0"
	})
	setConfig(t, client, "maxmemory", "0")
	awaitWarning(t, s, "evictions", server.Addr, "evicted "+infoField(t, client, "stats", "evicted_keys")+" keys", "stoker repair")
}

// infoField returns a field of a section of INFO.
func infoField(t testing.TB, client *goredis.Client, section, field string) string {
	t.Helper()
	text, err := client.Info(t.Context(), section).Result()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(text, "\n"+field+":")
	if !ok {
		t.Fatalf("no %s in\n%s", field, text)
	}
	value, _, _ := strings.Cut(rest, "\r")
	return value
}

// TestNoWarningFromIgnorance: what a server refuses to report raises no warning and
// moves no breaker, and refused settings are asked for seldom.
func TestNoWarningFromIgnorance(t *testing.T) {
	for refused, want := range map[string][]string{"config": {"eviction-policy"}, "info": nil} {
		t.Run(refused, func(t *testing.T) {
			server := redistest.Start(t, "--maxmemory-policy", "allkeys-lru")
			client := raw(t, server)
			if err := client.Do(t.Context(), "acl", "setuser", "app", "on", ">pw", "~*", "+@all", "-"+refused).Err(); err != nil {
				t.Fatal(err)
			}
			breakers := resilience.NewRegistry(resilience.BreakerConfig{}, nil)
			s := open(t, "redis://app:pw@"+server.Addr+"/0", watchful, func(o *redis.Options) { o.Breakers = breakers })
			refusals := func() (n int64) {
				for _, entry := range client.ACLLog(t.Context(), 10).Val() {
					if strings.HasPrefix(entry.Object, refused) {
						n += entry.Count
					}
				}
				return n
			}
			if refused == "config" {
				before := infoCalls(t, client)
				storagetest.Until(t, "it is checked again", func() bool { return infoCalls(t, client) > before+20 })
				if n := refusals(); n != 1 {
					t.Errorf("the settings were asked for %d times, want once", n)
				}
			} else {
				storagetest.Until(t, "it is checked again", func() bool { return refusals() > 10 })
			}
			var codes []string
			for _, w := range s.Status(t.Context()).Warnings {
				codes = append(codes, w.Code)
			}
			if !slices.Equal(codes, want) {
				t.Errorf("warnings %q, want %q", codes, want)
			}
			for _, b := range breakers.List() {
				if !b.LastFailure.IsZero() {
					t.Errorf("moved: %+v", b)
				}
			}
		})
	}
}

// infoCalls returns how often a server was asked for INFO, by this call too.
func infoCalls(t testing.TB, client *goredis.Client) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(infoField(t, client, "commandstats", "cmdstat_info"), "calls=%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUnsafeRedisIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		user string   // denied command, "" for none
		want []string // nil for a start
	}{
		"safe":             {persistent, "", nil},
		"evicts":           {append([]string{"--maxmemory-policy", "volatile-lru"}, persistent...), "", []string{"maxmemory-policy is volatile-lru"}},
		"all that is so":   {[]string{"--maxmemory-policy", "volatile-ttl"}, "", []string{"maxmemory-policy is volatile-ttl", "neither appendonly nor save is set"}},
		"reports nothing":  {persistent, "info", []string{"settings cannot be checked: NOPERM"}},
		"reports the most": {persistent, "config", nil},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, c.args...)
			url := server.URL()
			if c.user != "" {
				if err := raw(t, server).Do(t.Context(), "acl", "setuser", "app", "on", ">secret", "~*", "+@all", "-"+c.user).Err(); err != nil {
					t.Fatal(err)
				}
				url = "redis://app:secret@" + server.Addr + "/0"
			}
			for _, journal := range []bool{false, true} {
				s, err := redis.New(t.Context(), redis.Options{URL: url, Timeout: 2 * time.Second, Clock: time.Now, RequireSafe: true, MayBeAway: journal})
				if err == nil {
					_ = s.Close()
				}
				if (err == nil) != (c.want == nil) {
					t.Fatalf("with a journal %v: %v", journal, err)
				}
				for _, want := range c.want {
					if !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "--require-safe-redis: ") || strings.Contains(err.Error(), "secret") {
						t.Errorf("%v, want %q", err, want)
					}
				}
			}
		})
	}
}

// TestNewServerIsChecked: where the name moves to another server, that one is checked
// at once and not a minute later.
func TestNewServerIsChecked(t *testing.T) {
	name := redistest.StartMovingName(t, 2, persistent...)
	from, to := name.Servers[0], name.Servers[1]
	setConfig(t, raw(t, from), "maxmemory-policy", "volatile-lru")
	setConfig(t, raw(t, to), "maxmemory-policy", "allkeys-lru")
	s := open(t, name.URL(), func(o *redis.Options) { o.Resolve = name.Resolve })
	if m := warningOf(t, s, "eviction-policy", from.Addr); !strings.Contains(m, "volatile-lru") {
		t.Errorf("at the start: %q", m)
	}
	name.Move(1)
	awaitWarning(t, s, "eviction-policy", to.Addr, "allkeys-lru")
	awaitNoWarning(t, s, "eviction-policy", from.Addr)
}

// TestUnsafeRedisIsUnavailable: a store that started without Redis uses it once its
// settings are safe, and not before.
func TestUnsafeRedisIsUnavailable(t *testing.T) {
	server := redistest.Start(t, append([]string{"--maxmemory-policy", "allkeys-lru"}, persistent...)...)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	s := open(t, server.URL(), mayBeAway, func(o *redis.Options) { o.RequireSafe = true })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused := func() bool {
		_, _, err := s.Create(t.Context(), newSession(1, "ann", time.Hour), "")
		return errors.Is(err, storage.ErrUnavailable) && strings.Contains(err.Error(), "maxmemory-policy is allkeys-lru")
	}
	storagetest.Until(t, "it is reached, and refused", refused)
	for range 100 {
		if !refused() {
			t.Fatal("used although it is not safe")
		}
	}
	client := raw(t, server)
	if n := len(client.Keys(t.Context(), "stoker:*:session:*").Val()); n != 0 {
		t.Errorf("%d sessions were stored", n)
	}
	setConfig(t, client, "maxmemory-policy", "noeviction")
	storagetest.Until(t, "it is used", func() bool {
		_, _, err := s.Create(t.Context(), newSession(1, "ann", time.Hour), "")
		return err == nil
	})
	// From then on a setting that becomes unsafe raises a warning and no more.
	setConfig(t, client, "maxmemory-policy", "allkeys-lru")
	if _, _, err := s.Create(t.Context(), newSession(1, "ann", time.Hour), ""); err != nil {
		t.Error(err)
	}
}

// TestOldServersAreRefused: the scripts need Redis 7.0.
func TestOldServersAreRefused(t *testing.T) {
	server := redistest.Start(t)
	version := infoField(t, raw(t, server), "server", "redis_version")
	if len(version) < len("7.0.0") {
		t.Fatalf("version %q", version)
	}
	// As long as the version that is replaced.
	rest := strings.Repeat("1", len(version)-len("6.2."))
	for shown, want := range map[string]bool{"6.2." + rest: false, "6.0." + rest: false, version: true} {
		addr := rewriting(t, server.Addr, version, shown)
		s, err := redis.New(t.Context(), redis.Options{URL: "redis://" + addr + "/0", Timeout: 2 * time.Second, Clock: time.Now})
		if err == nil {
			_ = s.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: %v", shown, err)
		}
		if !want && !strings.Contains(fmt.Sprint(err), "Redis "+shown) || !want && !strings.Contains(fmt.Sprint(err), "7.0 or later") {
			t.Errorf("%s: %v, want the version found and the one needed", shown, err)
		}
	}
}

// rewriting is a proxy in front of a server that replaces a text in what the server
// sends by another of the same length.
func rewriting(t testing.TB, server, from, to string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				t.Error(err)
				return
			}
			all.Go(func() {
				_, _ = io.Copy(up, down)
				_ = up.Close()
			})
			all.Go(func() {
				defer down.Close()
				lines := bufio.NewReader(up)
				for {
					line, err := lines.ReadBytes('\n')
					_, _ = down.Write(bytes.ReplaceAll(line, []byte(from), []byte(to)))
					if err != nil {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}
