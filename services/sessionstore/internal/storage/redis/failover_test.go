package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// stalled is a deployment whose replica was paused while sessions ended, and then
// promoted.
type stalled struct {
	live, ended string
	lost        string // the cursor of an event that the replica never got
	span        time.Duration
}

// lag writes, pauses a replica, and writes what it never gets. What the master has sent
// already is in the replica's socket, so its connection is ended, too.
func lag(t *testing.T, s *redis.Store, master, replica *redistest.Server, await func()) (out stalled) {
	t.Helper()
	ctx := t.Context()
	out.live, _ = create(t, s, newSession(1, "ann", time.Hour), "")
	out.ended, _ = create(t, s, newSession(1, "bob", time.Hour), "")
	await()
	if err := replica.Pause(); err != nil {
		t.Fatal(err)
	}
	paused := time.Now()
	if n, err := raw(t, master).ClientKillByFilter(ctx, "TYPE", "replica").Result(); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	time.Sleep(500 * time.Millisecond) // the lag
	if _, err := s.End(ctx, out.ended, "done"); err != nil {
		t.Fatal(err)
	}
	cursors, err := s.Append(ctx, out.live, []*sessionv1.Event{{Id: "lost", Type: "input:text"}})
	if err != nil {
		t.Fatal(err)
	}
	out.lost = cursors[0]
	await()
	out.span = time.Since(paused)
	return out
}

func (x stalled) check(t *testing.T, name string, s *redis.Store) {
	t.Helper()
	began := time.Now()
	st := detected(t, s, 1)
	if st.LossSpan < x.span/2 || st.LossSpan > x.span+2*time.Second {
		t.Errorf("%s: %v were lost, reported %v", name, x.span, st.LossSpan)
	}
	storagetest.Until(t, "the new master answers", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		_, err := s.Get(context.Background(), x.live)
		return err == nil
	})
	if out, err := s.Get(t.Context(), x.ended); err != nil || out.GetPhase() != sessionv1.Session_ENDED {
		t.Errorf("%s: what ended is %v, %v", name, out.GetPhase(), err)
	}
	if p := page(t, s, x.live, x.lost, 0); !p.Truncated {
		t.Errorf("%s: a reader of what was lost: %+v", name, p)
	}
	t.Logf("%s: all of it %v after the promotion", name, time.Since(began).Round(time.Millisecond))
}

// TestSentinelLossIsDetected: when a replica that lags is promoted, its lag is
// reported. A failover without lag is no loss.
func TestSentinelLossIsDetected(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real failovers")
	}
	d := redistest.StartSentinel(t, redistest.SentinelOptions{})
	a, log := sweeping(t, d.URL())
	b, _ := sweeping(t, d.URL())
	master, replica := d.Servers[0], d.Servers[1]
	client := raw(t, master)
	marked(t, client, 2)
	// Nothing is lost by a failover of a replica that has everything.
	sessionOn(t, a, 1)
	if n := client.Wait(t.Context(), 1, 5*time.Second).Val(); n != 1 {
		t.Fatal("the replica does not follow")
	}
	x := lag(t, a, master, replica, func() { marked(t, client, 2) })
	if err := master.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := replica.Resume(); err != nil {
		t.Fatal(err)
	}
	promoted, _ := d.AwaitPromotion(t, master)
	if promoted != replica {
		t.Fatal("somebody else was promoted")
	}
	if st := raw(t, promoted).HGet(t.Context(), "stoker:{s1}:session:"+x.ended, "st").Val(); st != "0" && st != "1" {
		t.Fatalf("the end: state %q", st)
	}
	x.check(t, "a", a)
	x.check(t, "b", b)
	if st := a.Status(t.Context()); st.Losses != 1 || log.losses() != 1 {
		t.Errorf("%d losses, logged %d times", st.Losses, log.losses())
	}
}

// TestPlannedSentinelFailover: under load, what a planned failover loses is reported
// where it has lost anything, and only then.
func TestPlannedSentinelFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real failovers")
	}
	d := redistest.StartSentinel(t, redistest.SentinelOptions{})
	s, _ := sweeping(t, d.URL())
	client := raw(t, d.Servers[0])
	marked(t, client, 1)
	ids := make([]string, 8)
	for i := range ids {
		ids[i] = sessionOn(t, s, i)
	}
	var mu sync.Mutex
	acknowledged := map[string]string{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprint("e", i, "-", n)
				if _, err := s.Append(ctx, id, []*sessionv1.Event{{Id: name, Type: "input:text"}}); err == nil {
					mu.Lock()
					acknowledged[name] = id
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond) // the load
			}
		})
	}
	time.Sleep(time.Second) // the load
	d.Failover(t)
	promoted := d.AwaitMaster(t, d.Servers[0])
	time.Sleep(2 * time.Second) // the load goes on
	cancel()
	wg.Wait()
	n := missing(t, promoted, acknowledged)
	st := s.Status(t.Context())
	t.Logf("%d of %d acknowledged events were lost; reported: %d losses, a span of %v", n, len(acknowledged), st.Losses, st.LossSpan)
	if n > len(ids) && st.Losses == 0 {
		t.Errorf("%d events were lost, and nothing was reported", n)
	}
	if n == 0 && st.Losses > 0 {
		t.Errorf("nothing was lost, and %v reported", st.LossSpan)
	}
}

// missing counts acknowledged events that a server does not know.
func missing(t *testing.T, server *redistest.Server, acknowledged map[string]string) int {
	t.Helper()
	client := raw(t, server)
	known := map[string]bool{}
	for n := range storagetest.Shards {
		keys, err := client.Keys(context.Background(), fmt.Sprintf("stoker:{s%d}:feed", n)).Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, feed := range keys {
			entries, err := client.XRange(context.Background(), feed, "-", "+").Result()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				raw, _ := e.Values["e"].(string)
				ev := &sessionv1.Event{}
				if proto.Unmarshal([]byte(raw), ev) == nil {
					known[ev.GetId()] = true
				}
			}
		}
	}
	n := 0
	for name := range acknowledged {
		if !known[name] {
			n++
		}
	}
	return n
}

// TestClusterLossIsDetected: each master of a cluster may go back alone; its loss is
// one event, and the others' shards know of none.
func TestClusterLossIsDetected(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real failovers")
	}
	c := redistest.StartClusterWithReplicas(t, 3, 1)
	s, log := sweeping(t, c.URL())
	master := c.MasterOf(t, c.SlotOf(t, "{s1}"))
	replica := c.Node(t, c.ReplicaOf(t, master))
	client := raw(t, c.Node(t, master))
	await := func() {
		began := time.Now().UnixMilli()
		storagetest.Until(t, "the shard is marked", func() bool {
			time.Sleep(10 * time.Millisecond) // the pace of the attempts
			for field, v := range client.HGetAll(context.Background(), "stoker:{s1}:marks").Val() {
				if strings.HasPrefix(field, "at:") && storedNumber(v) > began {
					return true
				}
			}
			return false
		})
	}
	x := lag(t, s, c.Node(t, master), replica, await)
	if err := c.Node(t, master).Kill(); err != nil {
		t.Fatal(err)
	}
	if err := replica.Resume(); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the replica is promoted", func() bool {
		time.Sleep(50 * time.Millisecond) // the pace of the attempts
		role, err := raw(t, replica).Do(context.Background(), "role").Slice()
		return err == nil && role[0] == "master"
	})
	x.check(t, "the replica", s)
	time.Sleep(2 * time.Second) // every shard is looked at again
	if st := s.Status(t.Context()); st.Losses != 1 || log.losses() != 1 {
		t.Errorf("%d losses, logged %d times", st.Losses, log.losses())
	}
}

// TestReshardIsNoLoss: marks move with their slots, and a planned failover loses none.
func TestReshardIsNoLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real failovers")
	}
	c := redistest.StartClusterWithReplicas(t, 3, 1)
	s, log := sweeping(t, c.URL())
	for i := range storagetest.Shards {
		sessionOn(t, s, i)
	}
	masters := c.Masters(t)
	for _, way := range [][2]string{{masters[0], masters[1]}, {masters[1], masters[0]}} {
		c.Reshard(t, way[0], way[1], 2000, redistest.Reshard{Pipeline: 100})
	}
	replica := raw(t, c.Node(t, c.ReplicaOf(t, masters[0])))
	if err := replica.Do(t.Context(), "cluster", "failover").Err(); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the replica is promoted", func() bool {
		time.Sleep(50 * time.Millisecond) // the pace of the attempts
		role, err := replica.Do(context.Background(), "role").Slice()
		return err == nil && role[0] == "master"
	})
	storagetest.Until(t, "every shard is swept", func() bool {
		_, err := s.Sweep(context.Background())
		return err == nil
	})
	time.Sleep(1500 * time.Millisecond) // every shard is looked at again
	if _, err := s.Sweep(t.Context()); err != nil && !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
	if st := s.Status(t.Context()); st.Losses != 0 || log.losses() != 0 {
		t.Errorf("%d losses, %v, logged %d times", st.Losses, st.LossSpan, log.losses())
	}
}
