//go:build e2e

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// addClusterUser makes a user with exactly the documented rights on every node, and
// returns its URL.
func addClusterUser(t testing.TB, cluster *redistest.Cluster) string {
	t.Helper()
	for _, node := range cluster.Nodes {
		addLeastUser(t, node.Addr)
	}
	return strings.Replace(cluster.URL(), "://", "://"+leastLogin, 1)
}

// checkClusterRights reports what the user was refused on any node.
func checkClusterRights(t testing.TB, cluster *redistest.Cluster) {
	t.Helper()
	for _, node := range cluster.Nodes {
		client := goredis.NewClient(&goredis.Options{Addr: node.Addr})
		log, err := client.ACLLog(context.Background(), 100).Result()
		_ = client.Close()
		if err != nil {
			t.Error(err)
		}
		for _, entry := range log {
			t.Errorf("%s refused %s %s (%s, %d times)", node.Addr, entry.Context, entry.Object, entry.Reason, entry.Count)
		}
	}
}

// TestClusterRights: a store works on a cluster with the documented rights, also
// while a slot moves, and names the one that a node lacks.
func TestClusterRights(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	url := addClusterUser(t, cluster)
	s := open(t, url)
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	slot := cluster.SlotOf(t, "{s1}")
	from := cluster.MasterOf(t, slot)
	to := cluster.Nodes[0].Addr
	if to == from {
		to = cluster.Nodes[1].Addr
	}
	cluster.OpenSlot(t, slot, from, to)
	if err := cluster.MigrateKeys(t, from, to, cluster.KeysInSlot(t, from, slot)...); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the session is read by the node that imports it", func() bool {
		_, err := s.Get(t.Context(), id)
		if err != nil && !errors.Is(err, storage.ErrUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if cluster.CountErrors(t, "ASK") == 0 {
		t.Error("no call was sent on by ASK")
	}
	cluster.FinishSlot(t, slot, from, to)
	if _, err := s.Get(t.Context(), sessionid.New(1)); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("a session that never was: %v", err)
	}
	if _, err := s.Repair(t.Context(), storage.RepairQuery{}); err != nil {
		t.Error(err)
	}
	checkClusterRights(t, cluster)

	node := cluster.Nodes[2].Addr
	for _, name := range redis.RightsOfCluster() {
		setUser(t, node, "-"+name)
		want := fmt.Sprintf("the ACL user least of node %s lacks rights: %s; run ACL SETUSER least +%s", node, name, name)
		if err := openLeast(t, url); err == nil || err.Error() != want {
			t.Errorf("without %s: %v\nwant %s", name, err, want)
		}
		setUser(t, node, "+"+name)
	}
	if err := openLeast(t, url); err != nil {
		t.Errorf("with all rights again: %v", err)
	}
}

func openLeast(t *testing.T, url string) error {
	t.Helper()
	s, err := redis.New(t.Context(), redis.Options{URL: url, Timeout: 2 * time.Second, Shards: storagetest.Shards, Clock: time.Now})
	if err != nil {
		return err
	}
	return s.Close()
}
