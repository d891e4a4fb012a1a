package redis_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// controls are a connection of the test's own, which stays logged in whatever becomes
// of the passwords.
type controls struct {
	*goredis.Conn
	t *testing.T
}

func control(t *testing.T, addr string) controls {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr})
	conn := client.Conn()
	t.Cleanup(func() {
		_ = conn.Close()
		_ = client.Close()
	})
	return controls{conn, t}
}

func (c controls) do(args ...any) any {
	c.t.Helper()
	out, err := c.Do(c.t.Context(), args...).Result()
	if err != nil {
		c.t.Fatalf("%v: %v", args, err)
	}
	return out
}

// killOthers ends the connections of everybody else, which must be some.
func (c controls) killOthers() {
	c.t.Helper()
	if n, _ := c.do("client", "kill", "type", "normal", "skipme", "yes").(int64); n == 0 {
		c.t.Fatal("there was no connection to kill")
	}
}

// refuses reports a login that works although it must not.
func refuses(t *testing.T, addr, user, password string) {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr, Username: user, Password: password})
	defer client.Close()
	if err := client.Ping(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Fatalf("the former password: %v, want WRONGPASS", err)
	}
}

// rewrite replaces a file as a whole, as mounted secrets are.
func rewrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// calls reads and writes all the time.
type calls struct {
	good, unavailable atomic.Int64
	stop              chan struct{}
	done              chan error
}

// keepCalling begins calls; finish ends them, and fails for any error but unavailable.
func keepCalling(s *redis.Store) *calls {
	c := &calls{stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		for {
			select {
			case <-c.stop:
				c.done <- nil
				return
			default:
			}
			in := newSession(1, "ann", time.Hour)
			_, _, err := s.Create(context.Background(), in, "")
			if err == nil {
				_, err = s.Get(context.Background(), in.GetId())
			}
			switch {
			case err == nil:
				c.good.Add(1)
			case errors.Is(err, storage.ErrUnavailable):
				c.unavailable.Add(1)
			default:
				c.done <- err
				return
			}
		}
	}()
	return c
}

// awaitMore waits until calls succeed on connections that are made from now on.
func (c *calls) awaitMore(t *testing.T, what string) {
	t.Helper()
	before := c.good.Load()
	storagetest.Until(t, what, func() bool {
		select {
		case err := <-c.done:
			t.Fatalf("%s: a call failed: %v", what, err)
		default:
		}
		return c.good.Load() >= before+50
	})
}

func (c *calls) finish(t *testing.T) {
	t.Helper()
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Errorf("a call failed: %v", err)
	}
	t.Logf("%d calls succeeded, %d were unavailable", c.good.Load(), c.unavailable.Load())
}

// TestPasswordRotates: the password of the server changes while the store runs. New
// connections log in with what the file has then.
func TestPasswordRotates(t *testing.T) {
	server := redistest.Start(t)
	ctl := control(t, server.Addr)
	ctl.do("config", "set", "requirepass", "s3cr3tpw-1")
	file := filepath.Join(t.TempDir(), "password")
	rewrite(t, file, "s3cr3tpw-1\n")
	s := open(t, server.URL(), func(o *redis.Options) { o.Access.PasswordFile = file })
	c := keepCalling(s)
	c.awaitMore(t, "calls succeed")
	for _, next := range []string{"s3cr3tpw-2", "s3cr3tpw-3"} {
		rewrite(t, file, next+"\n")
		ctl.do("config", "set", "requirepass", next)
		refuses(t, server.Addr, "", "s3cr3tpw-1")
		ctl.killOthers()
		c.awaitMore(t, "calls succeed with "+next)
	}
	// A password that comes before the file: what fails meanwhile recovers.
	ctl.do("config", "set", "requirepass", "s3cr3tpw-4")
	ctl.killOthers()
	rewrite(t, file, "s3cr3tpw-4\n")
	c.awaitMore(t, "calls succeed once the file has the password")
	c.finish(t)
}

// TestACLPasswordRotates as documented: the user gets a second password, the file is
// rewritten, and the first password is removed.
func TestACLPasswordRotates(t *testing.T) {
	server := redistest.Start(t)
	addLeastUser(t, server.Addr)
	file := filepath.Join(t.TempDir(), "password")
	rewrite(t, file, "s3cr3tpw")
	s := open(t, "redis://least@"+server.Addr, func(o *redis.Options) { o.Access.PasswordFile = file })
	c := keepCalling(s)
	c.awaitMore(t, "calls succeed")
	ctl := control(t, server.Addr)
	ctl.do("acl", "setuser", "least", ">s3cr3tpw-2")
	rewrite(t, file, "s3cr3tpw-2")
	ctl.do("acl", "setuser", "least", "<s3cr3tpw")
	refuses(t, server.Addr, "least", "s3cr3tpw")
	ctl.killOthers()
	c.awaitMore(t, "calls succeed with the second password")
	c.finish(t)
}

// TestSentinelHasALoginOfItsOwn: master and Sentinels have different passwords, and
// neither gets the other's.
func TestSentinelHasALoginOfItsOwn(t *testing.T) {
	d := redistest.StartSentinel(t, redistest.SentinelOptions{Password: "s3cr3tpw-master", SentinelPassword: "s3cr3tpw-sentinel"})
	for _, sentinel := range d.Sentinels {
		client := goredis.NewClient(&goredis.Options{Addr: sentinel.Addr, Password: "s3cr3tpw-sentinel"})
		err := client.Do(t.Context(), "acl", "setuser", "app", "on", ">s3cr3tpw-app", "-@all", "+sentinel|get-master-addr-by-name").Err()
		_ = client.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(password string) string {
		path := filepath.Join(t.TempDir(), "password")
		rewrite(t, path, password+"\n")
		return path
	}
	for name, c := range map[string]struct {
		files redis.Access
		works bool
	}{
		"password":                {redis.Access{SentinelPasswordFile: file("s3cr3tpw-sentinel")}, true},
		"user and password":       {redis.Access{SentinelUser: "app", SentinelPasswordFile: file("s3cr3tpw-app")}, true},
		"no login":                {redis.Access{}, false},
		"password of the master":  {redis.Access{SentinelPasswordFile: file("s3cr3tpw-master")}, false},
		"another user's password": {redis.Access{SentinelUser: "app", SentinelPasswordFile: file("s3cr3tpw-sentinel")}, false},
	} {
		s, err := redis.New(t.Context(), redis.Options{URL: d.URL(), Access: c.files, Timeout: 2 * time.Second, Shards: storagetest.Shards, Clock: time.Now})
		if (err == nil) != c.works {
			t.Errorf("%s: %v, want success %v", name, err, c.works)
		}
		if err != nil {
			if strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%s: %v repeats a password", name, err)
			}
			continue
		}
		if _, err := s.Get(t.Context(), sessionid.New(1)); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: read: %v, want not found", name, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSentinelPasswordRotates: the Sentinels' password changes, and after that the
// master, which only they can name.
func TestSentinelPasswordRotates(t *testing.T) {
	d := redistest.StartSentinel(t, redistest.SentinelOptions{})
	var sentinels []controls
	for _, sentinel := range d.Sentinels {
		ctl := control(t, sentinel.Addr)
		ctl.do("acl", "setuser", "app", "on", ">s3cr3tpw", "-@all", "+sentinel|get-master-addr-by-name")
		sentinels = append(sentinels, ctl)
	}
	file := filepath.Join(t.TempDir(), "password")
	rewrite(t, file, "s3cr3tpw")
	s := open(t, d.URL(), func(o *redis.Options) { o.Access = redis.Access{SentinelUser: "app", SentinelPasswordFile: file} })
	c := keepCalling(s)
	c.awaitMore(t, "calls succeed")
	rewrite(t, file, "s3cr3tpw-2")
	for i, ctl := range sentinels {
		ctl.do("acl", "setuser", "app", ">s3cr3tpw-2", "<s3cr3tpw")
		refuses(t, d.Sentinels[i].Addr, "app", "s3cr3tpw")
		ctl.do("client", "kill", "user", "app")
	}
	former, err := d.Master(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d.Failover(t)
	d.AwaitMaster(t, former)
	if err := former.Kill(); err != nil { // it would serve for some seconds more
		t.Fatal(err)
	}
	c.awaitMore(t, "calls succeed on the new master")
	c.finish(t)
}

// TestUnusableFilesAreReported: a file that is lost while the store runs is a warning,
// and the store goes on.
func TestUnusableFilesAreReported(t *testing.T) {
	server := redistest.Start(t)
	addLeastUser(t, server.Addr)
	file := filepath.Join(t.TempDir(), "password")
	rewrite(t, file, "s3cr3tpw")
	s := open(t, "redis://least@"+server.Addr, func(o *redis.Options) {
		o.Access.PasswordFile = file
		o.SetCheckEvery(10 * time.Millisecond)
	})
	warned := func() bool {
		return slices.ContainsFunc(s.Status(t.Context()).Warnings, func(w storage.Warning) bool {
			return w.Code == "login-files" && strings.Contains(w.Message, "--redis-password-file") && !strings.Contains(w.Message, "s3cr3t")
		})
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the loss is reported", warned)
	control(t, server.Addr).killOthers()
	storagetest.Until(t, "calls succeed with the last password", func() bool {
		_, _, err := s.Create(t.Context(), newSession(1, "ann", time.Hour), "")
		return err == nil
	})
	rewrite(t, file, "s3cr3tpw")
	storagetest.Until(t, "the report is gone", func() bool { return !warned() })
}

// TestRefusedLoginSparesOthers: while logins are refused, a connection that ends takes no
// other one with it: those that are logged in go on.
func TestRefusedLoginSparesOthers(t *testing.T) {
	for _, before := range []string{"before", ""} {
		t.Run("password "+before, func(t *testing.T) { refuseLogins(t, before) })
	}
}

func refuseLogins(t *testing.T, before string) {
	t.Helper()
	server := redistest.Start(t)
	redisOf := control(t, server.Addr)
	redisOf.do("config", "set", "requirepass", before)
	url := "redis://:" + before + "@" + server.Addr
	if before == "" {
		url = "redis://" + server.Addr
	}
	s := open(t, url)
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	call := func() {
		t.Helper()
		if _, err := s.Get(t.Context(), id); err != nil {
			t.Fatalf("a read on a connection that is logged in: %v", err)
		}
		if _, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}}); err != nil {
			t.Fatalf("a write on a connection that is logged in: %v", err)
		}
	}
	call()
	redisOf.do("config", "set", "requirepass", "after")
	killed := 0
	kill := func() {
		list, _ := redisOf.do("client", "list", "type", "normal").(string)
		for line := range strings.Lines(list) {
			if strings.Contains(line, "cmd=xread") {
				killed++
				redisOf.do("client", "kill", "id", strings.TrimPrefix(strings.Fields(line)[0], "id="))
			}
		}
	}
	warned := func() bool {
		for _, w := range s.Status(t.Context()).Warnings {
			if w.Code == "login" && !strings.Contains(w.Message, "before") {
				return true
			}
		}
		return false
	}
	storagetest.Until(t, "the refused login is a warning", func() bool {
		kill() // until the feed needs a new connection
		return killed > 0 && warned()
	})
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		call()
	}
	if info, _ := redisOf.do("info", "stats").(string); before != "" && strings.Contains(info, "acl_access_denied_auth:0\r") {
		t.Error("no login was refused: this shows nothing")
	}
	redisOf.do("config", "set", "requirepass", before)
	storagetest.Until(t, "the warning is cleared", func() bool { return !warned() })
}
