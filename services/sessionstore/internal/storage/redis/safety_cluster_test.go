//go:build e2e

package redis_test

import (
	"slices"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestClusterIsWatched: every master is checked, one that is promoted soon after, and
// the warnings about one that is no master any more are cleared.
func TestClusterIsWatched(t *testing.T) {
	cluster := redistest.StartClusterWithReplicas(t, 3, 1)
	clients := map[string]*goredis.Client{}
	for _, n := range cluster.Nodes {
		clients[n.Addr] = raw(t, n)
		setConfig(t, clients[n.Addr], "appendonly", "yes")
		setConfig(t, clients[n.Addr], "cluster-require-full-coverage", "no")
	}
	masters := cluster.Masters(t)
	setConfig(t, clients[masters[0]], "cluster-require-full-coverage", "yes")
	setConfig(t, clients[masters[1]], "maxmemory-policy", "allkeys-lfu")
	s := open(t, cluster.URL(), watchful)
	var found []string
	for _, w := range s.Status(t.Context()).Warnings {
		found = append(found, w.Code+" "+w.Node)
	}
	if want := []string{"eviction-policy " + masters[1], "full-coverage " + masters[0]}; !slices.Equal(found, want) {
		t.Fatalf("at the start: %q, want %q", found, want)
	}
	setConfig(t, clients[masters[0]], "cluster-require-full-coverage", "no")
	awaitNoWarning(t, s, "full-coverage", masters[0])

	replica := cluster.ReplicaOf(t, masters[1])
	setConfig(t, clients[replica], "maxmemory-policy", "volatile-ttl")
	if m := warningOf(t, s, "eviction-policy", replica); m != "" {
		t.Errorf("a replica: %q", m)
	}
	cluster.Failover(t, replica)
	awaitWarning(t, s, "eviction-policy", replica, "volatile-ttl")
	awaitNoWarning(t, s, "eviction-policy", masters[1])
}

// TestSafeClusterStartsWithoutAMaster: --require-safe-redis looks at the masters that
// answer. One that does not holds no data up that is on the others.
func TestSafeClusterStartsWithoutAMaster(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	for _, n := range cluster.Nodes {
		setConfig(t, raw(t, n), "appendonly", "yes")
		setConfig(t, raw(t, n), "cluster-require-full-coverage", "no")
	}
	// Shard 0 has the number of shards, without which no store starts.
	needed := cluster.MasterOf(t, cluster.SlotOf(t, "{s0}"))
	masters := cluster.Masters(t)
	dead := masters[0]
	if dead == needed {
		dead = masters[1]
	}
	if err := cluster.Node(t, dead).Kill(); err != nil {
		t.Fatal(err)
	}
	safe := func(o *redis.Options) { o.RequireSafe = true }
	storagetest.Until(t, "it starts", func() bool {
		s, err := redis.New(t.Context(), optionsFor(cluster.URL(), safe))
		if err != nil {
			t.Log(err)
			return false
		}
		return s.Close() == nil
	})
	setConfig(t, raw(t, cluster.Node(t, needed)), "maxmemory-policy", "allkeys-lru")
	if s, err := redis.New(t.Context(), optionsFor(cluster.URL(), safe)); err == nil {
		_ = s.Close()
		t.Error("started although a master evicts")
	}
}
