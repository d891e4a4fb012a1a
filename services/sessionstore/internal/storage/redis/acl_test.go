package redis_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// leastLogin is the login of the user that addLeastUser makes, for a URL.
const leastLogin = "least:s3cr3tpw@"

// addLeastUser makes a user with exactly the documented rights, and returns its login.
func addLeastUser(t testing.TB, addr string) string {
	t.Helper()
	setUser(t, addr, append([]string{"reset", "on", ">s3cr3tpw"}, redis.LeastRights()...)...)
	return leastLogin
}

// setUser changes that user, by the default one.
func setUser(t testing.TB, addr string, rules ...string) {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr})
	defer client.Close()
	args := []any{"acl", "setuser", "least"}
	for _, r := range rules {
		args = append(args, r)
	}
	if err := client.Do(t.Context(), args...).Err(); err != nil {
		t.Fatalf("%v: %v", rules, err)
	}
}

// checkRightsUsed reports commands that the least user was refused, and required ones
// that nobody has run: the documented rights are neither too few nor too many.
func checkRightsUsed(t testing.TB, client *goredis.Client) {
	t.Helper()
	ctx := context.Background()
	for _, entry := range client.ACLLog(ctx, 100).Val() {
		t.Errorf("the user was refused %s %s (%s, %d times)", entry.Context, entry.Object, entry.Reason, entry.Count)
	}
	stats := client.Info(ctx, "commandstats").Val()
	required, _ := redis.RightsOfServer()
	for _, name := range required {
		// A role is asked for where connections are made, which has tests of its own.
		if name != "role" && !strings.Contains(stats, "cmdstat_"+name+":") {
			t.Errorf("nothing has run %s, which is a required right", name)
		}
	}
}

// openAs opens a store as the least user, or returns why it cannot.
func openAs(t *testing.T, addr string, change ...func(*redis.Options)) (*redis.Store, error) {
	t.Helper()
	opts := redis.Options{URL: "redis://" + leastLogin + addr + "/1", Timeout: 2 * time.Second, Shards: storagetest.Shards, Clock: time.Now}
	for _, c := range change {
		c(&opts)
	}
	s, err := redis.New(t.Context(), opts)
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// TestEachMissingRightIsNamed: a store whose user lacks one command does not start,
// and says which one and how to grant it.
func TestEachMissingRightIsNamed(t *testing.T) {
	server := redistest.Start(t)
	required, optional := redis.RightsOfServer()
	for _, name := range required {
		addLeastUser(t, server.Addr)
		setUser(t, server.Addr, "-"+name)
		_, err := openAs(t, server.Addr)
		want := fmt.Sprintf("the ACL user least lacks rights: %s; run ACL SETUSER least +%s", name, name)
		if err == nil || err.Error() != want || errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("without %s: %v\nwant %s", name, err, want)
		}
	}
	for _, name := range optional {
		addLeastUser(t, server.Addr)
		setUser(t, server.Addr, "-"+name)
		s, err := openAs(t, server.Addr)
		if err != nil {
			t.Errorf("without %s, which is optional: %v", name, err)
		} else if w := s.Status(t.Context()).Warnings; hasRightsWarning(w) {
			t.Errorf("without %s, which is optional: %+v", name, w)
		}
	}
}

// TestDocumentedRights: the rules that the documentation gives are those of the table.
func TestDocumentedRights(t *testing.T) {
	page, err := os.ReadFile("../../../../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "ACL SETUSER stoker on >PASSWORD " + strings.Join(redis.LeastRights(), " ") + "\n"; !strings.Contains(string(page), want) {
		t.Errorf("docs/redis.md lacks the line\n%s", want)
	}
}

// TestRightsAreCheckedWhenMemoryIsFull: the check takes no memory, so a full server
// is not one without rights.
func TestRightsAreCheckedWhenMemoryIsFull(t *testing.T) {
	server := redistest.Start(t)
	addLeastUser(t, server.Addr)
	s, err := openAs(t, server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	if err := client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "OOM") {
		t.Fatalf("a write to a full server: %v, want OOM", err)
	}
	if err := redis.CheckRights(t.Context(), s); err != nil {
		t.Error(err)
	}
}

func hasRightsWarning(list []storage.Warning) bool {
	return slices.ContainsFunc(list, func(w storage.Warning) bool { return w.Code == "rights" })
}

// TestMissingRightsAreExplained: rights on keys are told from commands, and several
// missing ones come together.
func TestMissingRightsAreExplained(t *testing.T) {
	server := redistest.Start(t)
	for name, c := range map[string]struct {
		rules []string
		want  string
	}{
		"two commands": {[]string{"-time", "-xadd"}, "time, xadd; run ACL SETUSER least +time +xadd"},
		"no keys":      {[]string{"resetkeys"}, "reading and writing the keys stoker:*; run ACL SETUSER least ~stoker:*"},
		"other keys":   {[]string{"resetkeys", "~other:*", "-time"}, "reading and writing the keys stoker:*, time; run ACL SETUSER least ~stoker:* +time"},
		"read only":    {[]string{"resetkeys", "%R~stoker:*"}, "writing the keys stoker:*; run ACL SETUSER least ~stoker:*"},
		"one shard":    {[]string{"resetkeys", "~stoker:{s0}:*"}, "the keys stoker:{s1}:feed, stoker:{s2}:feed, stoker:{s3}:feed"},
		"one kind":     {[]string{"resetkeys", "~stoker:{s*}:session:*"}, "the keys stoker:{s0}:by-project"},
		"nothing":      {[]string{"-@all"}, "select; run ACL SETUSER least +select"},
	} {
		addLeastUser(t, server.Addr)
		setUser(t, server.Addr, c.rules...)
		if _, err := openAs(t, server.Addr); err == nil || !strings.Contains(err.Error(), "lacks rights: "+c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestRightsAreWatched: a right that is taken away later becomes a warning, which
// goes when the right is back.
func TestRightsAreWatched(t *testing.T) {
	server := redistest.Start(t)
	addLeastUser(t, server.Addr)
	s, err := openAs(t, server.Addr, func(o *redis.Options) { o.SetCheckEvery(10 * time.Millisecond) })
	if err != nil {
		t.Fatal(err)
	}
	setUser(t, server.Addr, "-zcount")
	storagetest.Until(t, "a warning is raised", func() bool {
		for _, w := range s.Status(t.Context()).Warnings {
			if w.Code == "rights" && w.Node == "" && strings.Contains(w.Message, "zcount; run ACL SETUSER least +zcount") {
				return true
			}
		}
		return false
	})
	setUser(t, server.Addr, "-eval")
	storagetest.Until(t, "the warning names what the check itself needs", func() bool {
		for _, w := range s.Status(t.Context()).Warnings {
			if w.Code == "rights" && strings.Contains(w.Message, "+eval") {
				return true
			}
		}
		return false
	})
	setUser(t, server.Addr, "+eval", "+zcount")
	storagetest.Until(t, "the warning is cleared", func() bool { return !hasRightsWarning(s.Status(t.Context()).Warnings) })
}

// TestRightsOfARedisThatComesLater: a store that has started alone is unavailable
// until its user has the rights, and works from then on.
func TestRightsOfARedisThatComesLater(t *testing.T) {
	rules := slices.DeleteFunc(redis.LeastRights(), func(rule string) bool { return rule == "+time" })
	server := redistest.Start(t, append([]string{"--user", "least", "on", ">s3cr3tpw"}, rules...)...)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	s, err := openAs(t, server.Addr, func(o *redis.Options) { o.MayBeAway = true })
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the store says that a right is missing", func() bool {
		err := s.Status(t.Context()).Err
		if err != nil && !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("%v, want unavailable", err)
		}
		return err != nil && strings.Contains(err.Error(), "lacks rights: time")
	})
	setUser(t, server.Addr, "+time")
	storagetest.Until(t, "the store works", func() bool {
		_, _, err := s.Create(t.Context(), newSession(1, "ann", time.Minute), "")
		return err == nil
	})
}
