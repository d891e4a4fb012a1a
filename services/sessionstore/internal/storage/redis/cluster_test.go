//go:build e2e

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestClusterConformance runs the suite over a cluster of three masters, as a user
// with the documented rights and no others. A cluster has one database, so the cases
// run one after the other and flush it.
func TestClusterConformance(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	url := addClusterUser(t, cluster)
	t.Cleanup(func() { checkClusterRights(t, cluster) })
	for _, c := range storagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			flush(t, cluster)
			c.Run(t, storagetest.Fixture{
				Store: open(t, url), Unit: unit, Now: time.Now, Advance: time.Sleep,
				Replica: func() storage.Store { return open(t, url) },
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

// TestClusterIsAskedDirectly: with every slot at rest, no command goes to a node
// that has to send it on, whatever the store does.
func TestClusterIsAskedDirectly(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	before := cluster.CountErrors(t, "MOVED")
	s := open(t, cluster.URL())
	r, err := s.OpenFeed(t.Context(), "activity", "one")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for n := range 3 * storagetest.Shards {
		id, _ := create(t, s, newSession(n%storagetest.Shards, "ann", time.Second), fmt.Sprint("req", n))
		if _, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 10}); err != nil {
			t.Fatal(err)
		}
		if res, err := s.Extend(t.Context(), []storage.Activity{{SessionID: id}, {SessionID: id}}); err != nil || res[0].Err != nil {
			t.Fatal(err, res)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for delivered := 0; delivered < 3*storagetest.Shards; {
		b, err := r.Next(ctx, 100)
		if err != nil {
			t.Fatal(err)
		}
		delivered += len(b.Entries)
		for _, e := range b.Entries {
			if err := r.Ack(ctx, []storage.FeedAck{{Shard: int(e.GetShard()), Cursor: e.GetCursor()}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, listErr := s.List(t.Context(), storage.ListQuery{Limit: 100})
	_, usersErr := s.ActiveUsers(t.Context(), storage.ListQuery{Limit: 100})
	_, groupsErr := s.Groups(t.Context())
	_, censusErr := s.Census(t.Context())
	_, sweepErr := s.Sweep(t.Context())
	_, repairErr := s.Repair(t.Context(), storage.RepairQuery{})
	_, revokeErr := s.RevokeUser(t.Context(), "acme", "ann", nil, "")
	if err := errors.Join(listErr, usersErr, groupsErr, censusErr, sweepErr, repairErr, revokeErr, s.Hold(t.Context(), "me", time.Now()), s.Status(t.Context()).Err); err != nil {
		t.Error(err)
	}
	if moved := cluster.CountErrors(t, "MOVED") - before; moved > 0 {
		t.Errorf("%d commands went to a node that does not have the key", moved)
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
			zero := cluster.MasterOf(t, cluster.SlotOf(t, "stoker:{s0}:feed"))
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
			// The consumers of a group are known on the node of shard 0.
			r, err := s.OpenFeed(t.Context(), "activity", "one")
			switch {
			case cluster.Nodes[away].Addr == zero:
				if !errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("opening the feed: %v", err)
				}
			case err != nil:
				t.Errorf("opening the feed of the other shards: %v", err)
			default:
				if b, err := r.Next(t.Context(), 100); err != nil || len(b.Shards) == 0 || len(b.Shards) == storagetest.Shards {
					t.Errorf("reading the other shards: %+v, %v", b, err)
				}
				_ = r.Close() // its shards on the dead node cannot be released
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

// TestClusterBreakersLeaveWithTheirNode: a master dies and its replica is promoted. The
// breakers of the dead one are open for a minute, and are removed; the new master begins
// with closed ones.
func TestClusterBreakersLeaveWithTheirNode(t *testing.T) {
	c := redistest.StartClusterWithReplicas(t, 3, 1)
	for _, n := range c.Nodes { // else the living masters refuse everything meanwhile
		ask(t, n, "CONFIG SET cluster-require-full-coverage no")
	}
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Minute}, nil)
	s := open(t, c.URL(), func(o *redis.Options) { o.Breakers, o.Timeout = breakers, 250*time.Millisecond })
	var ids []string
	for shard := range storagetest.Shards {
		id, _ := create(t, s, newSession(shard, "ann", time.Hour), "")
		ids = append(ids, id)
	}
	dead := c.Nodes[0]
	if err := dead.Kill(); err != nil {
		t.Fatal(err)
	}
	opened := false
	storagetest.Until(t, "every session is served, and nothing is degraded", func() bool {
		served := true
		for _, id := range ids {
			_, err1 := s.Get(t.Context(), id)
			_, err2 := s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
			served = served && err1 == nil && err2 == nil
		}
		for _, b := range breakers.List() {
			opened = opened || b.Node == dead.Addr && b.State == resilience.Open
		}
		return served && !breakers.Degraded() && !nodes(breakers)[dead.Addr]
	})
	if !opened {
		t.Error("no breaker of the dead master opened: this shows nothing")
	}
	if err := dead.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}
