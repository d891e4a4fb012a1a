package redistest

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/livinguniverse/stoker/pkg/redisproc"
)

// MovingHost is the host name that a MovingName resolves.
const MovingHost = "redis.stoker.test"

// MovingName is a host name of several servers, which all listen on the same port of
// loopback addresses of their own. The name has the address of one of them at a
// time, and moves while the others live.
type MovingName struct {
	// Servers are what the name can point to; the first does at the start.
	Servers []*Server
	// Port is that of all servers.
	Port string

	at      atomic.Int64
	lookups atomic.Int64
}

// StartMovingName starts so many servers for a test and its subtests.
func StartMovingName(t testing.TB, servers int, args ...string) *MovingName {
	t.Helper()
	var lastErr error
	for range 20 { // the port must be free on every address
		addr, err := redisproc.FreeAddr(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(addr)
		n := &MovingName{Port: port}
		if lastErr = n.start(t, servers, args); lastErr == nil {
			t.Cleanup(func() {
				for _, s := range n.Servers {
					if err := s.Stop(); err != nil {
						t.Error(err)
					}
				}
			})
			return n
		}
	}
	t.Fatal(lastErr)
	return nil
}

func (n *MovingName) start(t testing.TB, servers int, args []string) error {
	t.Helper()
	for i := range servers {
		s, err := redisproc.LaunchAt(t.Context(), net.JoinHostPort(fmt.Sprintf("127.0.0.%d", 2+i), n.Port), t.TempDir(), args...)
		if err != nil {
			for _, started := range n.Servers {
				_ = started.Stop()
			}
			return err
		}
		n.Servers = append(n.Servers, s)
	}
	return nil
}

// Addr is the name with the port, which only Resolve can look up.
func (n *MovingName) Addr() string { return net.JoinHostPort(MovingHost, n.Port) }

// URL is how to connect by the name.
func (n *MovingName) URL() string { return "redis://" + n.Addr() + "/0" }

// Move gives the name the address of a server of Servers, by its index.
func (n *MovingName) Move(to int) { n.at.Store(int64(to)) }

// Lookups is how often the name was looked up.
func (n *MovingName) Lookups() int64 { return n.lookups.Load() }

// Resolve looks the name up, as net.Resolver.LookupHost does.
func (n *MovingName) Resolve(ctx context.Context, host string) ([]string, error) {
	if host != MovingHost {
		return net.DefaultResolver.LookupHost(ctx, host)
	}
	n.lookups.Add(1)
	ip, _, err := net.SplitHostPort(n.Servers[n.at.Load()].Addr)
	return []string{ip}, err
}
