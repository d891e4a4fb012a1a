//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	reshardShards = 8
	// reshardSeeds are long-lived sessions, of which the writers change some.
	reshardSeeds   = 2000
	reshardWriters = 5
	reshardReaders = 3
	ownSeeds       = 40
	// clientPace is the time between two calls of a client.
	clientPace = 8 * time.Millisecond
)

// TestReshardUnderLoad: slots move between masters, and then each master hands
// over to its replica, while clients call every operation and two replicas of
// the store sweep. No session that lives is ever missing or over, calls fail with
// UNAVAILABLE only, and at the end every key is where it belongs and every
// acknowledged write is there. At last a master is killed.
func TestReshardUnderLoad(t *testing.T) {
	for _, journal := range []bool{false, true} {
		t.Run(journalName(journal), func(t *testing.T) {
			r := newReshard(t, journal)
			r.loadWhile(t, func() {
				r.moveSlots(t)
				r.failOver(t)
			})
			r.checkFigures(t)
			r.load.awaitRest(t, r.admin, r.seeds)
			r.load.awaitShortLived(t)
			r.load.checkAtRest(t, r.cluster, reshardShards)
			r.killMaster(t)
		})
	}
}

func journalName(on bool) string {
	if on {
		return "journal on"
	}
	return "journal off"
}

// reshard is a cluster with replicas and two replicas of a store on it.
type reshard struct {
	cluster *redistest.Cluster
	journal bool
	load    *slotLoad
	admin   sessionv1.AdminServiceClient
	clients []*slotClient
	// seeds are the long-lived sessions that no client changes.
	seeds []string
	// watched receives the events of one session, which a client changes.
	watched string
	got     []string
	cut     bool
	// keys are those that moved, moves the runs of redis-cli that were whole.
	keys, moves int
	moving      map[string]*opCount
	redirects   int
}

func newReshard(t *testing.T, journal bool) *reshard {
	t.Helper()
	cluster := redistest.StartClusterWithReplicas(t, 3, 1)
	args := []string{
		"--shards", fmt.Sprint(reshardShards), "--redis-url", cluster.URL(), "--sweep-interval", "100ms", "--breaker-delay", faultDelay.String(),
	}
	first := args
	if journal {
		first = append(slices.Clone(args), "--data-dir", t.TempDir(), "--write-fallback", "journal")
	}
	conn := openStore(t, nil, first...)
	load := newSlotLoad(sessionv1.NewStorageServiceClient(conn), sessionv1.NewStorageServiceClient(openStore(t, nil, args...)))
	r := &reshard{cluster: cluster, journal: journal, load: load, admin: sessionv1.NewAdminServiceClient(conn)}
	r.seeds = load.seed(t, reshardSeeds)
	for i := range reshardWriters {
		r.clients = append(r.clients, newSlotClient(load, fmt.Sprint("writer-", i), r.seeds[:ownSeeds]))
		r.seeds = r.seeds[ownSeeds:]
	}
	r.watched = r.clients[0].mine[0]
	shards := map[int]bool{}
	for _, id := range r.seeds {
		shards[shardOf(id)] = true
	}
	if len(shards) != reshardShards {
		t.Fatalf("the sessions are on %d shards, want %d", len(shards), reshardShards)
	}
	load.startFeed(t)
	return r
}

// loadWhile drives the load while do runs.
func (r *reshard) loadWhile(t *testing.T, do func()) {
	t.Helper()
	stop := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	var calling, watching sync.WaitGroup
	for _, c := range r.clients {
		calling.Go(func() { paceEvery(stop, clientPace, c.step) })
	}
	for range reshardReaders {
		calling.Go(func() { paceEvery(stop, clientPace, func(ctx context.Context) { r.load.readStep(ctx, r.seeds) }) })
	}
	watching.Go(func() { r.got, r.cut = r.load.watch(ctx, r.watched) })
	defer func() {
		close(stop)
		calling.Wait()
		time.Sleep(time.Second) // for the last events
		cancel()
		watching.Wait()
	}()
	eventually(t, 20*time.Second, "the load is on", func() bool { return r.load.writes() > reshardSeeds+200 })
	do()
}

// moves are the nodes that slots move between, by their first slot at the start.
// From the lower to the higher and back, redis-cli moves the same slots, since it
// begins with the lowest.
var moves = [][2]int{{0, 1}, {1, 0}, {1, 2}, {2, 1}, {2, 0}, {0, 2}}

// moveSlots moves slots six times, so that each master gives some and gets some.
func (r *reshard) moveSlots(t *testing.T) {
	t.Helper()
	redirects := func() int { return r.cluster.CountErrors(t, "ASK") + r.cluster.CountErrors(t, "TRYAGAIN") }
	t.Log("before the moves: ", figures(r.load.startPhase()))
	before, masters, slots := redirects(), r.cluster.Masters(t), 0
	for i, way := range moves {
		from, to := masters[way[0]], masters[way[1]]
		if way[0] < way[1] || i == 4 {
			slots = r.slotsToMove(t, from)
		}
		if !t.Run(fmt.Sprint("move ", i+1), func(t *testing.T) { r.moveOnce(t, from, to, slots) }) {
			break // redis-cli moves nothing while a slot is open
		}
	}
	r.moving, r.redirects = r.load.startPhase(), redirects()-before
	t.Logf("%d keys in %d moves, %d times ASK or TRYAGAIN; %s", r.keys, r.moves, r.redirects, figures(r.moving))
}

// shardSlots returns the slots of shards that a master owns.
func (r *reshard) shardSlots(t *testing.T, master string) (slots []int) {
	t.Helper()
	owned := r.cluster.SlotsOf(t, master)
	for s := range reshardShards {
		if slot := r.cluster.SlotOf(t, shardKey(s)); slices.Contains(owned, slot) {
			slots = append(slots, slot)
		}
	}
	slices.Sort(slots)
	return slots
}

// slotsToMove returns how many slots of a master move: half of them, and as many
// more as it takes to move more than half of its shards, since redis-cli moves the lowest
// first.
func (r *reshard) slotsToMove(t *testing.T, from string) int {
	t.Helper()
	owned, shards := r.cluster.SlotsOf(t, from), r.shardSlots(t, from)
	if len(shards) == 0 {
		t.Fatalf("%s has no shard", from)
	}
	return max(len(owned)/2, slices.Index(owned, shards[len(shards)/2])+1)
}

func (r *reshard) moveOnce(t *testing.T, from, to string, slots int) {
	moved := 0
	owned := r.cluster.SlotsOf(t, from)[:slots]
	for _, slot := range r.shardSlots(t, from) {
		if slices.Contains(owned, slot) {
			moved += len(r.cluster.KeysInSlot(t, from, slot))
		}
	}
	if moved < 100 {
		t.Fatalf("the move from %s to %s has %d keys of the store, want 100 or more", from, to, moved)
	}
	begin := time.Now()
	if out := r.cluster.Reshard(t, from, to, slots, redistest.Reshard{Pipeline: 1}); strings.Contains(out, "BUSYKEY") {
		t.Error("redis-cli met a key on the wrong node")
	}
	r.keys, r.moves = r.keys+moved, r.moves+1
	t.Logf("%d slots with %d keys moved in %v", slots, moved, time.Since(begin).Round(time.Millisecond))
}

// failOver makes each master hand over to its replica.
func (r *reshard) failOver(t *testing.T) {
	t.Helper()
	for _, master := range r.cluster.Masters(t) {
		t.Run("failover", func(t *testing.T) {
			begin := time.Now()
			r.cluster.Failover(t, r.cluster.ReplicaOf(t, master))
			t.Logf("done in %v", time.Since(begin).Round(time.Millisecond))
		})
		time.Sleep(500 * time.Millisecond)
	}
}

// checkFigures makes sure that the load met the moves, and that its calls succeeded.
func (r *reshard) checkFigures(t *testing.T) {
	t.Helper()
	t.Log("failovers: ", figures(r.load.startPhase()))
	r.load.counting.Lock()
	defer r.load.counting.Unlock()
	t.Logf("in all: longest outage of a shard %v, %d writes journaled; %s", r.load.longest.Round(time.Millisecond), r.load.journaled, figures(r.load.total))
	if r.moves != len(moves) || r.redirects == 0 {
		t.Errorf("%d moves of %d keys, %d times ASK or TRYAGAIN: want %d moves, and calls that met them", r.moves, r.keys, r.redirects, len(moves))
	}
	if r.journal != (r.load.journaled > 0) {
		t.Errorf("%d writes were journaled; with a journal: %v", r.load.journaled, r.journal)
	}
	for op, least := range map[string]int{
		"append": 300, "update": 100, "UpdateSession": 80, "create": 100, "CreateSession with requestId": 50,
		"end": 50, "delete": 20, "ExtendTTL": 100, "BatchExtendTTL": 50, "RevokeUserSessions": 10, "SetPolicy": 20, "GetPolicy": 20,
		"GetSession": 300, "BatchGetSessions": 80, "GetTTL": 100, "ExplainTTL": 30, "ListEvents": 100,
		"ListSessions by user": 40, "ListSessions by project": 15, "ListActiveUsers": 15, "Feed": 100, "WatchEvents": 5,
	} {
		if c := r.moving[op]; c == nil || c.ok < least {
			t.Errorf("while slots moved, %s: %+v, want %d OK or more", op, c, least)
		}
	}
	// What a watch has received; with a journal, cursors may change in an outage.
	want := r.load.of(r.watched).events
	if !r.journal && (len(want) == 0 || !containsInOrder(r.got, want) || r.cut) {
		t.Errorf("the watch received %d events, truncated: %v; want all of %d in order", len(r.got), r.cut, len(want))
	}
}

func containsInOrder(got, want []string) bool {
	for _, w := range want {
		i := slices.Index(got, w)
		if i < 0 {
			return false
		}
		got = got[i+1:]
	}
	return true
}
