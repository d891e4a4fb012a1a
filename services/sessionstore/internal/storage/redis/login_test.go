package redis_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
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

// overTLS opens a store on a server that has certificates for a name, not for its
// address.
func overTLS(t *testing.T, server *redistest.TLSServer, files redis.Access) (*redis.Store, error) {
	t.Helper()
	s, err := redis.New(t.Context(), redis.Options{
		URL: "rediss://" + server.TLSAddr, Access: files, Timeout: 2 * time.Second, Shards: storagetest.Shards, Clock: time.Now,
	})
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// TestTLS: authority, client certificate and server name are each needed, and each is
// named by a flag.
func TestTLS(t *testing.T) {
	authority, foreign := redistest.NewAuthority(t), redistest.NewAuthority(t)
	server := redistest.StartTLS(t, authority, authority.Issue(t, "redis.test"))
	own, stranger := authority.Issue(t), foreign.Issue(t)
	right := redis.Access{TLSCA: authority.File, TLSCert: own.CertFile, TLSKey: own.KeyFile, TLSServerName: "redis.test"}
	s, err := overTLS(t, server, right)
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, newSession(1, "ann", time.Hour), "")
	if got, err := s.List(t.Context(), storage.ListQuery{Limit: 10}); err != nil || len(got.Sessions) != 1 {
		t.Errorf("listed %+v %v", got, err)
	}
	for name, c := range map[string]struct {
		change func(a *redis.Access)
		want   string
	}{
		"authority of the system": {func(a *redis.Access) { a.TLSCA = "" }, "certificate signed by unknown authority"},
		"another authority":       {func(a *redis.Access) { a.TLSCA = foreign.File }, "certificate signed by unknown authority"},
		"the address as name":     {func(a *redis.Access) { a.TLSServerName = "" }, "cannot validate certificate for 127.0.0.1"},
		"another name":            {func(a *redis.Access) { a.TLSServerName = "other.test" }, "not other.test"},
		"no certificate":          {func(a *redis.Access) { a.TLSCert, a.TLSKey = "", "" }, "tls: certificate required|reset by peer|broken pipe"},
		"a stranger's":            {func(a *redis.Access) { a.TLSCert, a.TLSKey = stranger.CertFile, stranger.KeyFile }, "remote error: tls: |reset by peer|broken pipe"},
	} {
		files := right
		c.change(&files)
		// A server that refuses a client's certificate closes the connection, which may
		// be seen before the reason.
		if _, err := overTLS(t, server, files); err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// Without TLS the port of TLS does not answer.
	if _, err := redis.New(t.Context(), redis.Options{URL: "redis://" + server.TLSAddr, Shards: storagetest.Shards, Clock: time.Now}); err == nil {
		t.Error("connected without TLS")
	}
}

// TestCertificatesRotate: the authority, and with it every certificate, changes while
// the store runs.
func TestCertificatesRotate(t *testing.T) {
	former, next := redistest.NewAuthority(t), redistest.NewAuthority(t)
	server := redistest.StartTLS(t, former, former.Issue(t, "127.0.0.1"))
	own := former.Issue(t)
	authorities := filepath.Join(t.TempDir(), "authorities.pem")
	replaceBy(t, authorities, former.File)
	s, err := overTLS(t, server, redis.Access{TLSCA: authorities, TLSCert: own.CertFile, TLSKey: own.KeyFile})
	if err != nil {
		t.Fatal(err)
	}
	c := keepCalling(s)
	c.awaitMore(t, "calls succeed")
	replaceBy(t, authorities, next.File)
	next.Renew(t, own)
	server.Show(t, next, next.Issue(t, "127.0.0.1"))
	control(t, server.Addr).killOthers()
	c.awaitMore(t, "calls succeed with the new certificates")
	c.finish(t)
	if _, err := overTLS(t, server, redis.Access{TLSCA: former.File, TLSCert: own.CertFile, TLSKey: own.KeyFile}); err == nil {
		t.Error("the former authority is still good")
	}
}

// TestClusterOverTLS: one seed address is enough, and each node is verified by the
// address that the cluster names.
func TestClusterOverTLS(t *testing.T) {
	authority := redistest.NewAuthority(t)
	_, bus, _ := net.SplitHostPort(freeAddr(t))
	server := redistest.StartTLS(t, authority, authority.Issue(t, "127.0.0.1"), "--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", bus, "--cluster-announce-ip", "127.0.0.1")
	ctl := control(t, server.Addr)
	ctl.do("cluster", "addslotsrange", 0, 16383)
	storagetest.Until(t, "the cluster forms", func() bool {
		info, _ := ctl.do("cluster", "info").(string)
		return strings.Contains(info, "cluster_state:ok")
	})
	own := authority.Issue(t)
	s := open(t, "rediss+cluster://"+server.TLSAddr, func(o *redis.Options) {
		o.Access = redis.Access{TLSCA: authority.File, TLSCert: own.CertFile, TLSKey: own.KeyFile}
	})
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	if _, err := s.Get(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func replaceBy(t *testing.T, path, other string) {
	t.Helper()
	content, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, string(content))
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
