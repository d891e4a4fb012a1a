//go:build e2e

package redis_test

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestClusterConformance runs the suite over a cluster of three masters. A
// cluster has one database, so the cases run one after the other and flush it.
func TestClusterConformance(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	for _, c := range storagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			flush(t, cluster)
			c.Run(t, storagetest.Fixture{
				Store: open(t, cluster.URL()), Unit: unit, Now: time.Now, Advance: time.Sleep,
				Replica: func() storage.Store { return open(t, cluster.URL()) },
				Entries: func() int { return clusterEntries(t, cluster) },
			})
		})
	}
}

// flush empties every master.
func flush(t testing.TB, cluster *redistest.Cluster) {
	t.Helper()
	for _, addr := range cluster.Masters(t) {
		node := goredis.NewClient(&goredis.Options{Addr: addr})
		err := node.FlushAll(t.Context()).Err()
		_ = node.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// clusterEntries counts the keys of sessions on all masters.
func clusterEntries(t testing.TB, cluster *redistest.Cluster) int {
	t.Helper()
	n := 0
	for _, addr := range cluster.Masters(t) {
		node := goredis.NewClient(&goredis.Options{Addr: addr})
		n += perSession(t, node)
		_ = node.Close()
	}
	return n
}

// TestClusterFollowsSlotsThatMove: while slots go from one node to another, the
// calls go with them. A call may meet a slot on its way, but no session is ever
// missing, nor is an answer that says where it went mistaken for a session.
func TestClusterFollowsSlotsThatMove(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	s := open(t, cluster.URL())
	var ids []string
	for range 60 {
		id, _ := create(t, s, newSession(len(ids)%storagetest.Shards, "ann", time.Hour), "")
		ids = append(ids, id)
	}
	node := func(n int) string {
		client := goredis.NewClient(&goredis.Options{Addr: cluster.Nodes[n].Addr})
		defer client.Close()
		id, err := client.ClusterMyID(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var answered, away atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for n := w; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := ids[n%len(ids)]
				_, err := s.Get(t.Context(), id)
				many, err2 := s.GetMany(t.Context(), []string{id})
				_, err3 := s.Update(t.Context(), id, storage.Update{})
				for _, err := range []error{err, errors.Join(err2, many[0].Err), err3} {
					switch {
					case err == nil:
						answered.Add(1)
					case errors.Is(err, storage.ErrUnavailable):
						away.Add(1)
					default:
						t.Errorf("while slots move: %v", err)
						return
					}
				}
			}
		})
	}
	out, err := exec.CommandContext(t.Context(), "redis-cli", "--cluster", "reshard", cluster.Nodes[0].Addr,
		"--cluster-from", node(0), "--cluster-to", node(1), "--cluster-slots", "5400", "--cluster-yes").CombinedOutput()
	close(stop)
	wg.Wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%d calls answered, %d met a slot on its way", answered.Load(), away.Load())
	if a := answered.Load(); a < 1000 || away.Load() > a/10 {
		t.Error("too few answers")
	}
	for _, id := range ids {
		if _, err := s.Get(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// TestClusterWithoutAMaster: with one of three masters away, be it the one that
// keeps the store's own notes, the rest is swept, and the store says of itself
// that a part of it answers. With all of them away it says that none does.
func TestClusterWithoutAMaster(t *testing.T) {
	for away := range 3 {
		t.Run(fmt.Sprint(away), func(t *testing.T) {
			cluster := redistest.StartCluster(t, 3)
			for _, node := range cluster.Nodes {
				client := goredis.NewClient(&goredis.Options{Addr: node.Addr})
				if err := client.ConfigSet(t.Context(), "cluster-require-full-coverage", "no").Err(); err != nil {
					t.Fatal(err)
				}
				_ = client.Close()
			}
			s := open(t, cluster.URL())
			if _, err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := s.Status(t.Context()); st.Err != nil {
				t.Fatal(st.Err)
			}
			if err := cluster.Nodes[away].Kill(); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if _, err := s.Sweep(t.Context()); !errors.Is(err, storage.ErrPartly) || !errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("sweeping: %v", err)
				}
				if st := s.Status(t.Context()); !errors.Is(st.Err, storage.ErrPartly) || !errors.Is(st.Err, storage.ErrUnavailable) {
					t.Errorf("status: %v", st.Err)
				}
			}
			for _, node := range cluster.Nodes {
				_ = node.Kill()
			}
			if _, err := s.Sweep(t.Context()); err == nil || errors.Is(err, storage.ErrPartly) {
				t.Errorf("sweeping with all away: %v", err)
			}
			if st := s.Status(t.Context()); st.Err == nil || errors.Is(st.Err, storage.ErrPartly) {
				t.Errorf("status with all away: %v", st.Err)
			}
		})
	}
}
