package redistest

import (
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/livinguniverse/stoker/pkg/redisproc"
)

// Cluster is a Redis Cluster of real processes.
type Cluster struct {
	// Nodes are all nodes: those that started as masters, then the replicas.
	Nodes []*Server
}

// URL is how to connect to the cluster.
func (c *Cluster) URL() string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = n.Addr
	}
	return "redis+cluster://" + strings.Join(addrs, ",")
}

// StartCluster starts a cluster of masters without replicas for a test and its
// subtests, and waits until every node serves all slots.
func StartCluster(t testing.TB, masters int) *Cluster {
	t.Helper()
	return StartClusterWithReplicas(t, masters, 0)
}

// StartClusterWithReplicas is StartCluster with replicas of each master. It also
// waits until every replica is in sync.
func StartClusterWithReplicas(t testing.TB, masters, replicasPerMaster int) *Cluster {
	t.Helper()
	c := &Cluster{}
	args := []string{"--cluster", "create"}
	for range masters * (1 + replicasPerMaster) {
		s := startClusterNode(t)
		c.Nodes = append(c.Nodes, s)
		args = append(args, s.Addr)
	}
	args = append(args, "--cluster-replicas", strconv.Itoa(replicasPerMaster), "--cluster-yes")
	out, err := exec.CommandContext(t.Context(), "redis-cli", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
	await(t, "the cluster forms", func() error { return c.checkWhole(t.Context(), masters) })
	return c
}

func startClusterNode(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	var lastErr error
	for range 50 {
		addr, err := redisproc.FreeAddr(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// The cluster bus listens 10,000 above the port, which must fit.
		_, port, _ := net.SplitHostPort(addr)
		n, err := strconv.Atoi(port)
		if err != nil || n > 55_000 {
			continue
		}
		s, err := redisproc.LaunchAt(t.Context(), addr, dir,
			"--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
			// A replica may be promoted however old its data is, and syncs at once.
			"--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0")
		if lastErr = err; err != nil {
			continue
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	t.Fatalf("no server, or no port whose cluster bus port is free: %v", lastErr)
	return nil
}
