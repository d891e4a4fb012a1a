package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redisproc"
)

// SentinelMaster is the name of the master that Sentinels of StartSentinel watch.
const SentinelMaster = "stoker"

// SentinelOptions are what a Sentinel deployment can do beyond the defaults.
type SentinelOptions struct {
	// Password is that of the servers, SentinelPassword that of the Sentinels; empty
	// for none.
	Password, SentinelPassword string
	// DownAfter is how long a master must be silent to be replaced; a second if 0.
	DownAfter time.Duration
	// Args are further arguments of the servers.
	Args []string
}

// Sentinel is a deployment of real processes: a master, its replica, and three
// Sentinels that agree by two.
type Sentinel struct {
	// Servers are the servers: the first master, then its replica.
	Servers []*Server
	// Sentinels watch them.
	Sentinels []*Server

	opts SentinelOptions
}

// StartSentinel starts a deployment for a test and its subtests, and waits until the
// replica is in sync and every Sentinel knows all the others and the replica.
func StartSentinel(t testing.TB, opts SentinelOptions) *Sentinel {
	t.Helper()
	if opts.DownAfter == 0 {
		opts.DownAfter = time.Second
	}
	s := &Sentinel{opts: opts}
	args := []string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}
	if opts.Password != "" {
		args = append(args, "--requirepass", opts.Password, "--masterauth", opts.Password)
	}
	args = append(args, opts.Args...)
	master := Start(t, args...)
	host, port, _ := net.SplitHostPort(master.Addr)
	s.Servers = []*Server{master, Start(t, append(args, "--replicaof", host+" "+port)...)}
	await(t, "the replica is in sync", func() error { return s.checkSynced(t.Context(), s.Servers[1].Addr) })
	for range 3 {
		s.Sentinels = append(s.Sentinels, startSentinel(t, s.config(host, port)))
	}
	await(t, "the Sentinels agree", func() error { return s.checkAgreed(t.Context(), master.Addr) })
	return s
}

func (s *Sentinel) config(host, port string) string {
	lines := []string{
		fmt.Sprintf("sentinel monitor %s %s %s 2", SentinelMaster, host, port),
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", SentinelMaster, s.opts.DownAfter.Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s 3000", SentinelMaster),
	}
	if s.opts.Password != "" {
		lines = append(lines, fmt.Sprintf("sentinel auth-pass %s %s", SentinelMaster, s.opts.Password))
	}
	if s.opts.SentinelPassword != "" {
		lines = append(lines, "requirepass "+s.opts.SentinelPassword, "sentinel sentinel-pass "+s.opts.SentinelPassword)
	}
	return strings.Join(lines, "\n") + "\n"
}

func startSentinel(t testing.TB, config string) *Server {
	t.Helper()
	var lastErr error
	for range 5 { // somebody else may take the free port first
		addr, err := redisproc.FreeAddr(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var s *Server
		if s, lastErr = redisproc.LaunchSentinelAt(t.Context(), addr, t.TempDir(), config); lastErr == nil {
			t.Cleanup(func() {
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			})
			return s
		}
	}
	t.Fatal(lastErr)
	return nil
}

// URL is how to connect through the Sentinels. It holds the servers' password, and
// none of the Sentinels.
func (s *Sentinel) URL() string {
	addrs := make([]string, len(s.Sentinels))
	for i, n := range s.Sentinels {
		addrs[i] = n.Addr
	}
	login := ""
	if s.opts.Password != "" {
		login = ":" + s.opts.Password + "@"
	}
	return "redis+sentinel://" + login + strings.Join(addrs, ",") + "/" + SentinelMaster + "/0"
}

// Master returns the server that all reachable Sentinels name as the master, if it
// knows of itself that it is.
func (s *Sentinel) Master(ctx context.Context) (*Server, error) {
	addr := ""
	for _, n := range s.Sentinels {
		named, err := s.masterOf(ctx, n.Addr)
		switch {
		case err != nil:
			return nil, err
		case addr != "" && named != addr:
			return nil, fmt.Errorf("the master is %s or, as %s sees it, %s", addr, n.Addr, named)
		}
		addr = named
	}
	for _, n := range s.Servers {
		if n.Addr != addr {
			continue
		}
		info, err := textAs(ctx, addr, s.opts.Password, "INFO", "replication")
		if err == nil && !strings.Contains(info, "role:master") {
			err = fmt.Errorf("%s does not know that it is the master", addr)
		}
		return n, err
	}
	return nil, fmt.Errorf("the Sentinels name %q, which is no server of theirs", addr)
}

// masterOf returns the master that one Sentinel names.
func (s *Sentinel) masterOf(ctx context.Context, sentinel string) (string, error) {
	reply, err := commandAs(ctx, sentinel, s.opts.SentinelPassword, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SentinelMaster)
	if err != nil {
		return "", err
	}
	pair, _ := reply.([]any)
	if len(pair) != 2 {
		return "", fmt.Errorf("%s knows no master %s", sentinel, SentinelMaster)
	}
	return net.JoinHostPort(fmt.Sprint(pair[0]), fmt.Sprint(pair[1])), nil
}

// AwaitPromotion waits until a server other than the given one says itself that it
// is a master, and returns it and when that was seen. Clients can be served from
// then on, whether or not all Sentinels know.
func (s *Sentinel) AwaitPromotion(t testing.TB, former *Server) (master *Server, at time.Time) {
	t.Helper()
	await(t, "a replica is promoted", func() error {
		var errs []error
		for _, n := range s.Servers {
			if n == former {
				continue
			}
			info, err := textAs(t.Context(), n.Addr, s.opts.Password, "INFO", "replication")
			if err == nil && strings.Contains(info, "role:master") {
				master, at = n, time.Now()
				return nil
			}
			errs = append(errs, fmt.Errorf("%s is no master: %w", n.Addr, errors.Join(err)))
		}
		return errors.Join(errs...)
	})
	return master, at
}

// AwaitMaster waits until all Sentinels name a master other than the given one,
// which knows of itself that it is, and returns it.
func (s *Sentinel) AwaitMaster(t testing.TB, former *Server) (master *Server) {
	t.Helper()
	await(t, "the Sentinels name a new master", func() (err error) {
		master, err = s.Master(t.Context())
		if err == nil && master == former {
			err = fmt.Errorf("the master is still %s", former.Addr)
		}
		return err
	})
	return master
}

// AwaitReplica waits until a server is a replica in sync.
func (s *Sentinel) AwaitReplica(t testing.TB, replica *Server) {
	t.Helper()
	await(t, "the replica is in sync", func() error { return s.checkSynced(t.Context(), replica.Addr) })
}

// Failover begins a planned failover by SENTINEL FAILOVER.
func (s *Sentinel) Failover(t testing.TB) {
	t.Helper()
	reply, err := textAs(t.Context(), s.Sentinels[0].Addr, s.opts.SentinelPassword, "SENTINEL", "FAILOVER", SentinelMaster)
	if err != nil || reply != "OK" {
		t.Fatalf("SENTINEL FAILOVER: %q %v", reply, err)
	}
}

func (s *Sentinel) checkSynced(ctx context.Context, replica string) error {
	info, err := textAs(ctx, replica, s.opts.Password, "INFO", "replication")
	if err == nil {
		err = syncedIn(replica, info)
	}
	return err
}

// checkAgreed returns why the Sentinels cannot fail a master over yet: each must
// know the master, its replica and the two other Sentinels.
func (s *Sentinel) checkAgreed(ctx context.Context, master string) error {
	for _, n := range s.Sentinels {
		if named, err := s.masterOf(ctx, n.Addr); err != nil || named != master {
			return errors.Join(fmt.Errorf("%s names the master %q, want %s", n.Addr, named, master), err)
		}
		for what, want := range map[string]int{"SENTINELS": 2, "REPLICAS": 1} {
			reply, err := commandAs(ctx, n.Addr, s.opts.SentinelPassword, "SENTINEL", what, SentinelMaster)
			if err != nil {
				return err
			}
			list, _ := reply.([]any)
			if len(list) != want {
				return fmt.Errorf("%s knows %d %s, want %d", n.Addr, len(list), what, want)
			}
			if state := fmt.Sprint(list...); strings.Contains(state, "disconnected") || strings.Contains(state, "s_down") {
				return fmt.Errorf("%s has no link to one of %s: %s", n.Addr, what, state)
			}
		}
	}
	return nil
}
