package redis_test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

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
