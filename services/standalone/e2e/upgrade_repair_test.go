//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestRepairAfterOldVersion: while a slot moves, the old version drops live
// sessions from every index. The new version restores them: by its census after a
// while, and by a full repair at once.
func TestRepairAfterOldVersion(t *testing.T) {
	oldVersion.binary(t, "sessionstore") // built outside of the subtests
	for _, v := range []struct {
		name, census string
		restore      func(d *damaged, t *testing.T, r *upgradeReplica)
	}{
		{"by the census", "200ms", (*damaged).awaitCensus},
		{"by stoker repair", "0", (*damaged).repair},
	} {
		t.Run(v.name, func(t *testing.T) {
			d := damageWithOld(t)
			d.started = time.Now()
			d.store.start(t, newVersion, "--census-interval="+v.census)
			v.restore(d, t, d.store)
			d.checkListed(t)
		})
	}
}

// damaged is a cluster on which the old version has dropped index entries.
type damaged struct {
	cluster *redistest.Cluster
	store   *upgradeReplica
	// live are the long-lived sessions by user, due those that expired meanwhile.
	live map[string][]string
	due  []string
	// lost are the live sessions that are missing in an index.
	lost    int
	started time.Time
}

// indexKinds are the keys of a shard that move first, with the feed.
var indexKinds = []string{"deadlines", "warnings", "by-user", "by-project", "retired", "feed", "groups", "holds", "replayed"}

// damageWithOld moves the keys of a shard from under an old store: those of the
// indexes first, whereupon its sweep finds due sessions without a record there and
// drops all that are like it.
func damageWithOld(t *testing.T) *damaged {
	t.Helper()
	cluster := redistest.StartCluster(t, 3)
	d := &damaged{
		cluster: cluster, live: map[string][]string{},
		store: newUpgradeReplica(t, "store", "--shards", "1", "--redis-url", cluster.URL(), "--sweep-interval", "50ms", "--redis-timeout", "1s", "--breaker-failures", "1000"),
	}
	d.store.start(t, oldVersion)
	create := func(user string, ttl time.Duration) string {
		s, err := d.store.store().CreateSession(t.Context(), &sessionv1.CreateSessionRequest{
			User: user, Project: "project", TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(ttl)},
		})
		must(t, err)
		return s.GetId()
	}
	for i := range 40 {
		user := fmt.Sprint("user-", i/4)
		d.live[user] = append(d.live[user], create(user, faultTTL))
	}
	if wrong := readShard(t, cluster, 0).faults(); len(wrong) > 0 {
		t.Fatalf("before the move: %v", wrong)
	}
	const soon = 1500 * time.Millisecond
	for i := range 3 {
		d.due = append(d.due, create(fmt.Sprint("due-", i), soon))
	}

	slot := cluster.SlotOf(t, shardKey(0))
	from := cluster.MasterOf(t, slot)
	masters := cluster.Masters(t)
	to := masters[(slices.Index(masters, from)+1)%len(masters)]
	cluster.OpenSlot(t, slot, from, to)
	var indexes []string
	for _, k := range cluster.KeysInSlot(t, from, slot) {
		if kind, _, _ := strings.Cut(strings.TrimPrefix(k, "stoker:{s0}:"), ":"); slices.Contains(indexKinds, kind) {
			indexes = append(indexes, k)
		}
	}
	must(t, cluster.MigrateKeys(t, from, to, indexes...))
	time.Sleep(soon + 500*time.Millisecond) // for the sweep of those that are due
	d.store.stop(t, syscall.SIGTERM)
	// The old version may have written keys at both nodes.
	cluster.ReplaceKeys(t, from, to, cluster.KeysInSlot(t, from, slot)...)
	cluster.FinishSlot(t, slot, from, to)

	raw := readShard(t, cluster, 0)
	for _, ids := range d.live {
		for _, id := range ids {
			s := raw.sessions[id]
			_, hasDeadline := raw.scores["deadlines"][id]
			if s.state == "0" && (!hasDeadline || !slices.Contains(raw.members["by-user"], s.byUser) || !slices.Contains(raw.members["by-project"], s.byProject)) {
				d.lost++
			}
		}
	}
	t.Logf("after the move with the old version %d of 40 live sessions, whose records are there, are missing in an index; in all: %d inconsistencies", d.lost, len(raw.faults()))
	if d.lost == 0 {
		t.Fatal("the old version has dropped no live session from an index: there is nothing to restore")
	}
	return d
}

// whole reports whether the records and the indexes agree and what was due is over.
func (d *damaged) whole(t *testing.T) bool {
	t.Helper()
	raw := readShard(t, d.cluster, 0)
	return len(raw.faults()) == 0 && raw.unswept(0) == 0
}

// awaitCensus waits until the census has restored everything. It leaves the format
// as it was: only a full repair knows that nothing is missing.
func (d *damaged) awaitCensus(t *testing.T, r *upgradeReplica) {
	eventually(t, 15*time.Second, "the census has restored the indexes", func() bool { return d.whole(t) })
	t.Logf("restored within %v of the start", time.Since(d.started).Round(10*time.Millisecond))
	if f := r.status(t).GetDataFormat(); f != "1" {
		t.Errorf("the format is %s after the census, want 1", f)
	}
}

// repair makes sure that without a census nothing is restored, and that a repair
// restores everything.
func (d *damaged) repair(t *testing.T, r *upgradeReplica) {
	time.Sleep(time.Second)
	if d.whole(t) {
		t.Error("without a census and a repair, the indexes are whole")
	}
	got := repairWith(t, r.grpc)
	t.Logf("the repair: %v", got)
	if wrong := readShard(t, d.cluster, 0).faults(); len(wrong) > 0 {
		t.Errorf("after the repair: %d inconsistencies: %v", len(wrong), wrong[:min(3, len(wrong))])
	}
	if !got.GetDone() || got.GetSessions() < 40 || int(got.GetRestored()) < d.lost {
		t.Errorf("want it done, with %d or more restored", d.lost)
	}
	eventually(t, 5*time.Second, "what was due is over", func() bool { return d.whole(t) })
	if again := repairWith(t, r.grpc); again.GetRestored() != 0 || again.GetDropped() != 0 {
		t.Errorf("the second repair: %v, want none restored or dropped", again)
	}
	if f := r.status(t).GetDataFormat(); f != "2" {
		t.Errorf("the format is %s after the repair, want 2", f)
	}
}

// checkListed makes sure that the restored sessions are listed and can be revoked,
// and that those that were due have expired once.
func (d *damaged) checkListed(t *testing.T) {
	t.Helper()
	ctx, store := context.WithoutCancel(t.Context()), d.store.store()
	page, err := store.ListSessions(ctx, &sessionv1.ListSessionsRequest{Project: "project", PageSize: 200})
	must(t, err)
	if n := len(page.GetSessions()); n != 40 {
		t.Errorf("the project lists %d sessions, want 40", n)
	}
	for user, ids := range d.live {
		page, err := store.ListSessions(ctx, &sessionv1.ListSessionsRequest{User: user, Project: "project"})
		must(t, err)
		var got []string
		for _, s := range page.GetSessions() {
			got = append(got, s.GetId())
		}
		slices.Sort(got)
		if !slices.Equal(got, slices.Sorted(slices.Values(ids))) {
			t.Errorf("%s lists %v, want %v", user, got, ids)
		}
		r, err := store.RevokeUserSessions(ctx, &sessionv1.RevokeUserSessionsRequest{User: user, Project: "project", Reason: "done"})
		must(t, err)
		if int(r.GetCount()) != len(ids) {
			t.Errorf("%d sessions of %s are revoked, want %d", r.GetCount(), user, len(ids))
		}
	}
	for _, id := range d.due {
		expired := 0
		for _, e := range allEvents(t, store, id) {
			if e.GetType() == "session:expired" {
				expired++
			}
		}
		if expired != 1 {
			t.Errorf("%s has %d session:expired, want 1", id, expired)
		}
	}
}
