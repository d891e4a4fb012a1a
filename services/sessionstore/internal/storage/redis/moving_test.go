//go:build e2e

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/resilient"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestClusterConformanceOnTheMove runs the suite over a cluster whose slots move
// all the time, through the retries that the service has. Every answer must be as
// of a cluster at rest; only the error for a slot on the move may come between.
func TestClusterConformanceOnTheMove(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	var feeds []string
	for n := range storagetest.Shards {
		feeds = append(feeds, fmt.Sprintf("stoker:{s%d}:feed", n))
	}
	var moves, keys, refusals atomic.Int64
	var moving sync.Mutex
	t.Run("side by side", func(t *testing.T) {
		done := make(chan struct{})
		t.Run("moves", func(t *testing.T) {
			t.Parallel()
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
				func() {
					moving.Lock() // no key is on its way while all are dropped
					defer moving.Unlock()
					keys.Add(int64(moveSlot(t, cluster, cluster.SlotOf(t, feeds[rand.IntN(len(feeds))]))))
				}()
				moves.Add(1)
			}
		})
		t.Run("cases", func(t *testing.T) {
			t.Parallel()
			defer close(done)
			for _, c := range storagetest.Cases() {
				t.Run(c.Name, func(t *testing.T) {
					moving.Lock()
					flush(t, cluster)
					moving.Unlock()
					open := func() storage.Store {
						return &steadfast{Store: retrying(open(t, cluster.URL())), refusals: &refusals, moving: &moving}
					}
					c.Run(t, storagetest.Fixture{
						Store: open(), Unit: unit, Now: time.Now, Advance: time.Sleep, Replica: open,
						Entries: func() int { return clusterEntries(t, cluster) },
					})
				})
			}
		})
	})
	if wrong := cluster.Misplaced(t, feeds...); len(wrong) > 0 {
		t.Errorf("on the wrong node: %v", wrong)
	}
	t.Logf("%d moves of slots with %d keys; %d calls were made again beyond the usual retries", moves.Load(), keys.Load(), refusals.Load())
	if moves.Load() < 100 || keys.Load() < 1000 {
		t.Error("too few moves to show anything")
	}
}

// moveSlot moves a slot to another master, key by key in a random order, and
// returns how many keys there were.
func moveSlot(t *testing.T, cluster *redistest.Cluster, slot int) int {
	t.Helper()
	from := cluster.MasterOf(t, slot)
	others := make([]string, 0, len(cluster.Nodes))
	for _, addr := range cluster.Masters(t) {
		if addr != from {
			others = append(others, addr)
		}
	}
	to := others[rand.IntN(len(others))]
	cluster.OpenSlot(t, slot, from, to)
	moved := 0
	for { // until none is left: keys may be written meanwhile
		keys := cluster.KeysInSlot(t, from, slot)
		if len(keys) == 0 {
			break
		}
		rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		for _, k := range keys {
			if err := cluster.MigrateKeys(t, from, to, k); err != nil {
				t.Errorf("moving %s: %v", k, err)
				cluster.ReplaceKeys(t, from, to, k)
			}
		}
		moved += len(keys)
	}
	cluster.FinishSlot(t, slot, from, to)
	return moved
}

func retrying(s storage.Store) storage.Store {
	return resilient.New(s, resilient.Options{Clock: time.Now, Retry: resilience.RetryConfig{
		Attempts: 10, Delay: 2 * time.Millisecond, Budget: 10, Burst: 100_000,
	}})
}

// steadfast makes calls again that met a slot on the move, where the service leaves
// that to its own loops and to its callers.
type steadfast struct {
	storage.Store
	refusals *atomic.Int64
	moving   *sync.Mutex // held while a slot moves
}

// steadily calls op until its error is another than that the store cannot answer.
func steadily(p *steadfast, op func() error) error {
	for end := time.Now().Add(10 * time.Second); ; {
		err := op()
		if !errors.Is(err, storage.ErrUnavailable) || time.Now().After(end) {
			return err
		}
		p.refusals.Add(1)
		time.Sleep(time.Millisecond)
	}
}

func (p *steadfast) Sweep(ctx context.Context) (sum storage.SweepResult, err error) {
	err = steadily(p, func() error {
		r, err := p.Store.Sweep(ctx)
		sum.Warned, sum.Expired, sum.Purged, sum.Trimmed = sum.Warned+r.Warned, sum.Expired+r.Expired, sum.Purged+r.Purged, sum.Trimmed+r.Trimmed
		sum.Held = r.Held
		return err
	})
	return sum, err
}

func (p *steadfast) Hold(ctx context.Context, holder string, from time.Time) error {
	return steadily(p, func() error { return p.Store.Hold(ctx, holder, from) })
}

// Repair has slots rest where it is to look at everything: it does not end while
// they move, and says so (TestClusterRepairWaitsForSlots).
func (p *steadfast) Repair(ctx context.Context, q storage.RepairQuery) (out storage.RepairResult, err error) {
	if q.Budget == 0 {
		p.moving.Lock()
		defer p.moving.Unlock()
	}
	err = steadily(p, func() error {
		out, err = p.Store.Repair(ctx, q)
		return err
	})
	return out, err
}

func (p *steadfast) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (sum int, err error) {
	err = steadily(p, func() error {
		n, err := p.Store.RevokeUser(ctx, project, user, except, reason)
		sum += n
		return err
	})
	return sum, err
}

func (p *steadfast) ListEvents(ctx context.Context, q storage.EventQuery) (page storage.EventPage, err error) {
	err = steadily(p, func() error {
		page, err = p.Store.ListEvents(ctx, q)
		return err
	})
	return page, err
}

func (p *steadfast) Create(ctx context.Context, s *sessionv1.Session, request string) (out *sessionv1.Session, existed bool, err error) {
	err = steadily(p, func() error {
		out, existed, err = p.Store.Create(ctx, s, request)
		return err
	})
	return out, existed, err
}

// TestClusterRepairWaitsForSlots: a full repair does not say that it is done while
// a slot is on the move, since it may have missed keys, and leaves the format as it
// was; once the slot has arrived it does.
func TestClusterRepairWaitsForSlots(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	s := open(t, cluster.URL(), func(o *redis.Options) { o.Timeout = 150 * time.Millisecond })
	id, _ := create(t, s, newSession(2, "ann", time.Hour), "")
	slot := cluster.SlotOf(t, "stoker:{s2}:feed")
	from := cluster.MasterOf(t, slot)
	to := cluster.Masters(t)[0]
	if to == from {
		to = cluster.Masters(t)[1]
	}
	cluster.OpenSlot(t, slot, from, to)
	if r, err := s.Repair(t.Context(), storage.RepairQuery{}); r.Done || !errors.Is(err, storage.ErrPartly) || !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("while a slot is open: %+v, %v", r, err)
	}
	for _, k := range cluster.KeysInSlot(t, from, slot) {
		if err := cluster.MigrateKeys(t, from, to, k); err != nil {
			t.Fatal(err)
		}
	}
	cluster.FinishSlot(t, slot, from, to)
	r, err := s.Repair(t.Context(), storage.RepairQuery{})
	if err != nil || !r.Done || r.Sessions != 1 || r.Restored != 0 {
		t.Errorf("once it has arrived: %+v, %v", r, err)
	}
	if _, err := s.Get(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// TestClusterFailoverOfAHalfMovedSlot: the master of a slot fails over in the middle
// of the slot's migration. A replica of Redis does not know of it: what has moved is
// missing on the new master, no call may answer that it does not exist, and no sweep
// may drop its index entries. One of Valkey 8 does know: calls that touch keys on
// one side only may work. Once the move is completed, all is there.
func TestClusterFailoverOfAHalfMovedSlot(t *testing.T) {
	cluster := redistest.StartClusterWithReplicas(t, 3, 1)
	s := open(t, cluster.URL(), func(o *redis.Options) { o.Timeout, o.Retention = 500*time.Millisecond, time.Hour })
	const shard = 2
	var live []string
	for n := range 5 {
		id, _ := create(t, s, newSession(shard, fmt.Sprint("u", n), time.Hour), "")
		if _, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}}); err != nil {
			t.Fatal(err)
		}
		live = append(live, id)
	}
	due, _ := create(t, s, newSession(shard, "due", 300*time.Millisecond), "")
	absent := sessionid.New(shard)
	if _, err := s.Get(t.Context(), absent); !errors.Is(err, storage.ErrNotFound) {
		t.Fatalf("a session that never was: %v", err)
	}
	// Many misses of one call are confirmed by one look.
	gone := make([]string, 200)
	for i := range gone {
		gone[i] = sessionid.New(shard)
	}
	looks := redis.Looks(s)
	if many, err := s.GetMany(t.Context(), gone); err != nil || !errors.Is(many[199].Err, storage.ErrNotFound) {
		t.Fatalf("sessions that never were: %v, %v", many[199], err)
	}
	if n := redis.Looks(s) - looks; n != 1 {
		t.Errorf("%d looks for one call", n)
	}
	slot := cluster.SlotOf(t, "stoker:{s2}:feed")
	from := cluster.MasterOf(t, slot)
	to := cluster.Masters(t)[0]
	if to == from {
		to = cluster.Masters(t)[1]
	}
	cluster.OpenSlot(t, slot, from, to)
	for _, id := range append([]string{due}, live...) {
		if err := cluster.MigrateKeys(t, from, to, "stoker:{s2}:session:"+id); err != nil {
			t.Fatal(err)
		}
	}
	replica := cluster.ReplicaOf(t, from)
	cluster.Failover(t, replica)
	sentOn := knowsOpenSlot(t, replica, slot)
	met := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		id := live[0]
		_, getErr := s.Get(t.Context(), id)
		_, updateErr := s.Update(t.Context(), id, storage.Update{})
		_, appendErr := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "late", Type: "input:text"}})
		_, endErr := s.End(t.Context(), id, "")
		_, eventsErr := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 10})
		_, explainErr := s.Explain(t.Context(), id)
		many, _ := s.GetMany(t.Context(), []string{id})
		ext, _ := s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
		for name, err := range map[string]error{
			"get": getErr, "update": updateErr, "append": appendErr, "end": endErr, "events": eventsErr, "explain": explainErr,
			"delete": s.Delete(t.Context(), id), "get many": many[0].Err, "extend": ext[0].Err,
		} {
			if err == nil && sentOn && !slices.Contains([]string{"append", "end", "delete"}, name) {
				continue
			}
			if !errors.Is(err, storage.ErrUnavailable) {
				t.Fatalf("%s while half of the slot is elsewhere: %v", name, err)
			}
			met++
		}
		if r, err := s.Sweep(t.Context()); r.Expired+r.Warned+r.Purged > 0 {
			t.Errorf("swept %+v, %v", r, err)
		}
	}
	if t.Logf("%d calls were refused", met); met == 0 {
		t.Error("no call met the half-moved slot")
	}
	out, err := exec.CommandContext(t.Context(), "redis-cli", "--cluster", "fix", replica, "--cluster-yes").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, id := range live {
		storagetest.Until(t, "the session is read again", func() bool {
			_, err := s.Get(t.Context(), id)
			if errors.Is(err, storage.ErrNotFound) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	storagetest.Until(t, "what is due is expired", func() bool {
		_, err := s.Sweep(t.Context())
		x, gerr := s.Get(t.Context(), due)
		return err == nil && gerr == nil && x.GetEndTime() != nil
	})
	page, err := s.List(t.Context(), storage.ListQuery{Project: "acme", Limit: 100})
	if err != nil || len(page.Sessions) != len(live) {
		t.Errorf("listed %d of %d sessions, %v", len(page.Sessions), len(live), err)
	}
	if r, err := s.Repair(t.Context(), storage.RepairQuery{}); err != nil || r.Restored != 0 || r.Dropped != 0 {
		t.Errorf("the repair: %+v, %v", r, err)
	}
}

// knowsOpenSlot reports whether a node knows that a slot is leaving it.
func knowsOpenSlot(t *testing.T, addr string, slot int) bool {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr})
	defer client.Close()
	nodes, err := client.ClusterNodes(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(nodes, fmt.Sprintf("[%d->-", slot))
}
