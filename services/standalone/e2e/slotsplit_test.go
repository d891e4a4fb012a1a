//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// splitOrder is an order in which the keys of a shard move: those of a lower rank
// first, by the kind of the key.
type splitOrder struct {
	name string
	// first are kinds of keys, each a rank of its own; what is not named is last.
	first []string
	// shuffled orders move keys of any kind in parts of equal size.
	shuffled uint64
}

var splitOrders = []splitOrder{
	{name: "index keys first", first: []string{"deadlines", "warnings", "by-user", "by-project", "retired"}},
	{name: "sessions first", first: []string{"session"}},
	{name: "feed first", first: []string{"feed", "groups"}},
	{name: "events first", first: []string{"events"}},
	{name: "deadlines and warnings only", first: []string{"deadlines warnings"}},
	{name: "ids first", first: []string{"ids"}},
	{name: "request ids and deletions first", first: []string{"request gone", "session events ids"}},
	{name: "bookkeeping first", first: []string{"meta policies projects", "holds replayed lease groups consumers"}},
	{name: "shuffled", shuffled: 1},
	{name: "shuffled again", shuffled: 2},
}

// parts divides keys into those that move together, in order.
func (o splitOrder) parts(keys []string, seed uint64) (out [][]string) {
	if o.shuffled > 0 {
		r := rand.New(rand.NewPCG(o.shuffled, seed))
		r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		return slices.Collect(slices.Chunk(keys, len(keys)/6+1))
	}
	rank := func(key string) int {
		kind, _, _ := strings.Cut(strings.TrimPrefix(key, "stoker:{s0}:"), ":")
		i := slices.IndexFunc(o.first, func(kinds string) bool { return slices.Contains(strings.Fields(kinds), kind) })
		return cmp.Or(i+1, len(o.first)+1)
	}
	slices.SortStableFunc(keys, func(a, b string) int { return rank(a) - rank(b) })
	for from := 0; from < len(keys); {
		to := from
		for to < len(keys) && rank(keys[to]) == rank(keys[from]) {
			to++
		}
		// Of many keys of a kind, sessions are found on both nodes.
		if half := (from + to) / 2; half-from >= 10 {
			out = append(out, keys[from:half])
			from = half
		}
		out = append(out, keys[from:to])
		from = to
	}
	return out
}

// split is a store with one shard, whose slot moves by hand.
type split struct {
	cluster *redistest.Cluster
	load    *slotLoad
	admin   sessionv1.AdminServiceClient
	slot    int
	// met counts the steps at which both nodes had keys of the shard.
	met int
}

// TestSplitSlot: the keys of one shard move one after the other, in ten orders.
// At several places on the way every operation is called: it returns the right result,
// or is journaled, or is UNAVAILABLE and applied wholly or not at all. Sessions fall due
// meanwhile. When the slot has moved, all indexes are whole.
func TestSplitSlot(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for _, journal := range []bool{false, true} {
		t.Run(journalName(journal), func(t *testing.T) {
			s := newSplit(t, journal)
			for i, o := range splitOrders {
				t.Run(o.name, func(t *testing.T) { s.move(t, o, i, seed) })
			}
			t.Logf("longest outage %v, %d writes journaled; %s", s.load.longest.Round(time.Millisecond), s.load.journaled, figures(s.load.total))
			if s.met < 3*len(splitOrders) {
				t.Errorf("calls met both halves of the slot %d times, want %d or more", s.met, 3*len(splitOrders))
			}
			if journal != (s.load.journaled > 0) {
				t.Errorf("%d writes were journaled; with a journal: %v", s.load.journaled, journal)
			}
		})
	}
}

func newSplit(t *testing.T, journal bool) *split {
	t.Helper()
	cluster := redistest.StartCluster(t, 3)
	// Breakers that open would keep the calls from the slot.
	args := []string{"--shards", "1", "--redis-url", cluster.URL(), "--sweep-interval", "50ms", "--breaker-failures", "1000", "--breaker-delay", "100ms"}
	first := args
	if journal {
		first = append(slices.Clone(args), "--data-dir", t.TempDir(), "--write-fallback", "journal")
	}
	conn := openStore(t, nil, first...)
	s := &split{
		cluster: cluster, slot: cluster.SlotOf(t, shardKey(0)), admin: sessionv1.NewAdminServiceClient(conn),
		load: newSlotLoad(sessionv1.NewStorageServiceClient(conn), sessionv1.NewStorageServiceClient(openStore(t, nil, args...))),
	}
	s.load.startFeed(t)
	return s
}

// splitRounds is how often every operation is called at most while a slot moves.
const splitRounds = 10

// splitSet are the sessions of one order, beside those of its client.
type splitSet struct {
	*slotClient
	// toRevoke is a session of a user of its own for each round.
	toRevoke []string
	// lapsing fall due while the slot moves, and nobody extends them.
	lapsing []string
}

// prepare creates the sessions of one order, before the slot opens.
func (s *split) prepare(t *testing.T, name string) *splitSet {
	t.Helper()
	c := &splitSet{slotClient: newSlotClient(s.load, name, nil)}
	c.extension = 600 * time.Millisecond
	for range 4 {
		c.n++
		c.create(t.Context())
	}
	for _, id := range c.mine { // so that there is an older revision
		c.n++
		c.update(t.Context(), id)
	}
	for range 2 * splitRounds {
		c.n++
		c.createLong(t.Context())
	}
	for i := range splitRounds {
		c.toRevoke = append(c.toRevoke, c.createAs(t.Context(), &sessionv1.CreateSessionRequest{
			User: fmt.Sprintf("%s-revoked-%d", name, i), Project: c.project, TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
		}))
	}
	c.setPolicy(t.Context())
	for range 4 {
		c.n++
		c.createDue(t.Context())
	}
	for i := range 5 {
		c.lapsing = append(c.lapsing, c.createAs(t.Context(), &sessionv1.CreateSessionRequest{
			User: c.user, Project: c.project, TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Duration(300+100*i) * time.Millisecond)},
		}))
	}
	if c.err != nil || len(c.mine) != 4 || len(c.spare) != 2*splitRounds || len(c.due) != 4 {
		t.Fatalf("%d, %d and %d sessions, %v", len(c.mine), len(c.spare), len(c.due), c.err)
	}
	return c
}

// move moves the slot to another node in an order, calling every operation after
// each part.
func (s *split) move(t *testing.T, o splitOrder, i int, seed uint64) {
	from := s.cluster.MasterOf(t, s.slot)
	masters := s.cluster.Masters(t)
	at := slices.Index(masters, from)
	to := masters[(at+1)%len(masters)]
	if i%2 == 1 { // back again
		to = masters[(at+len(masters)-1)%len(masters)]
	}
	c := s.prepare(t, fmt.Sprint("order-", i))
	s.load.startPhase()
	journaled := s.load.journaled
	begin := time.Now()

	s.cluster.OpenSlot(t, s.slot, from, to)
	s.callAll(t, c)
	parts := o.parts(s.cluster.KeysInSlot(t, from, s.slot), seed)
	for p, keys := range parts {
		s.migrate(t, from, to, keys)
		if here, there := len(s.cluster.KeysInSlot(t, from, s.slot)), len(s.cluster.KeysInSlot(t, to, s.slot)); here > 0 && there > 0 {
			s.met++
		}
		s.callAll(t, c)
		if p == (len(parts)-1)/2 { // the keys are on both nodes
			time.Sleep(time.Until(s.load.of(c.lapsing[len(c.lapsing)-1]).deadline))
		}
		time.Sleep(120 * time.Millisecond) // for two sweeps
	}
	for round := 0; ; round++ {
		left := s.cluster.KeysInSlot(t, from, s.slot)
		if len(left) == 0 {
			break
		}
		if round == 10 {
			t.Fatalf("keys come to a node that gives up its slot: %q", left)
		}
		s.migrate(t, from, to, left)
	}
	s.cluster.FinishSlot(t, s.slot, from, to)
	met := s.load.startPhase()
	for _, id := range c.lapsing {
		if d := s.load.of(id).deadline; d.Before(begin) || d.After(time.Now()) {
			t.Errorf("%s fell due at %v, want while the slot moved, from %v on", id, d, begin)
		}
	}
	t.Logf("seed %d: %d parts in %v, %d writes journaled; %s", seed, len(parts), time.Since(begin).Round(time.Millisecond), s.load.journaled-journaled, figures(met))

	s.load.awaitRest(t, s.admin, c.mine)
	time.Sleep(4 * c.extension) // the longest life of those that fall due
	s.load.checkAtRest(t, s.cluster, 1)
	for _, op := range []string{"GetSession", "BatchGetSessions", "GetTTL", "ExplainTTL", "ListEvents"} {
		if n := met[op]; n == nil || n.ok == 0 {
			t.Errorf("%s: %+v while the slot moved, want some OK", op, n)
		}
	}
}

func (s *split) migrate(t *testing.T, from, to string, keys []string) {
	t.Helper()
	if err := s.cluster.MigrateKeys(t, from, to, keys...); err != nil {
		t.Error(err)
		s.cluster.ReplaceKeys(t, from, to, keys...)
	}
}

// callAll calls every operation once, each change about other sessions, and then
// reads all of the client's sessions: what was acknowledged must be visible.
func (s *split) callAll(t *testing.T, c *splitSet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if len(c.toRevoke) == 0 {
		t.Fatalf("more than %d rounds", splitRounds)
	}
	known := slices.Concat(c.mine, c.spare, c.due, c.lapsing, c.toRevoke[:1])
	for _, o := range slotChanges {
		c.n++
		if o.op == "RevokeUserSessions" {
			id := c.toRevoke[0]
			c.toRevoke = c.toRevoke[1:]
			c.revoked, c.revoking, c.unsure = s.load.of(id).user, []string{id}, 0
			c.revokeNow(ctx)
			continue
		}
		o.run(c.slotClient, ctx)
	}
	for _, id := range known {
		s.load.get(ctx, s.load.store, id)
		s.load.getTTL(ctx, id, false)
	}
	for _, id := range c.mine {
		s.load.getTTL(ctx, id, true)
		s.load.listEvents(ctx, id)
	}
	s.load.batchGet(ctx, known)
	s.load.list(ctx, c.user, "")
	s.load.list(ctx, c.user, c.project)
	s.load.list(ctx, "", c.project)
	s.load.activeUsers(ctx, c.project)
}
