// Package redistest starts private Redis servers for tests: real processes on
// free ports, each with a directory of its own, ended with the test.
package redistest

import (
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redisproc"
)

// startTimeout bounds how long a cluster may take to form.
const startTimeout = 10 * time.Second

// Server is a running redis-server.
type Server = redisproc.Server

// Start starts a server without persistence for a test and its subtests.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := redisproc.Launch(t.Context(), t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Cluster is a Redis Cluster of masters without replicas.
type Cluster struct{ Nodes []*Server }

// URL is how to connect to the cluster.
func (c *Cluster) URL() string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = n.Addr
	}
	return "redis+cluster://" + strings.Join(addrs, ",")
}

// StartCluster starts a cluster of masters for a test and its subtests, and
// waits until every node serves all slots.
func StartCluster(t testing.TB, masters int) *Cluster {
	t.Helper()
	c := &Cluster{}
	args := []string{"--cluster", "create"}
	for range masters {
		// The cluster bus listens 10,000 above the port, which must fit.
		s := startClusterNode(t)
		c.Nodes = append(c.Nodes, s)
		args = append(args, s.Addr)
	}
	args = append(args, "--cluster-replicas", "0", "--cluster-yes")
	out, err := exec.CommandContext(t.Context(), "redis-cli", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
	deadline := time.Now().Add(startTimeout)
	for _, n := range c.Nodes {
		for {
			info, err := n.Ask(t.Context(), "CLUSTER INFO")
			if err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(masters)) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("node %s did not join: %s %v", n.Addr, info, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return c
}

func startClusterNode(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	for range 50 {
		addr, err := redisproc.FreeAddr(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(addr)
		n, err := strconv.Atoi(port)
		if err != nil || n > 55_000 {
			continue
		}
		s, err := redisproc.LaunchAt(t.Context(), addr, dir, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
		if err != nil {
			continue
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	t.Fatal("no port whose cluster bus port is free")
	return nil
}
