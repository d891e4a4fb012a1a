//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	handoverSessions = 1000
	handoverRate     = 2000 // events a second
	handoverFor      = 32 * time.Second
	handoverKill     = 10 * time.Second
)

// TestKilledReplicaHandsItsShardsOn: of three activity replicas one is killed
// under load. No session in use dies, none is extended twice for one cause, and
// the shards of the dead one are read again within 10 s.
func TestKilledReplicaHandsItsShardsOn(t *testing.T) {
	addr, admin := freeAddr(t), freeAddr(t)
	p := start(t, "sessionstore", "--grpc-addr", addr, "--admin-addr", admin, "--storage", "redis", "--redis-url", redistest.Start(t).URL())
	ready(t, "http://"+admin+"/readyz", p)
	store := dial(t, addr)
	var replicas []*process
	var metrics []string
	for range 3 {
		m := freeAddr(t)
		replicas = append(replicas, start(t, "activity", "--grpc-addr", freeAddr(t), "--admin-addr", m, "--store-addr", addr, "--flush-interval", "1s"))
		ready(t, "http://"+m+"/readyz", replicas[len(replicas)-1])
		metrics = append(metrics, "http://"+m+"/metrics")
	}
	eventually(t, 20*time.Second, "the shards are shared out", func() bool {
		all := 0
		for _, m := range metrics {
			n := len(shardsOf(t, m))
			if n == 0 {
				return false
			}
			all += n
		}
		return all == 64
	})

	ids := make([]string, handoverSessions)
	parallel(t, len(ids), func(ctx context.Context, i int) error {
		s, err := store.CreateSession(ctx, &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", i), TtlPolicy: &sessionv1.TTLPolicy{
			BaseTtl: durationpb.New(20 * time.Second), Extension: durationpb.New(10 * time.Second), ExtendBelow: durationpb.New(10 * time.Second),
			MaxExtensions: proto.Int32(1000),
		}})
		ids[i] = s.GetId()
		return err
	})
	var killed time.Time
	var orphans []string
	acked := load(t, store, ids, func() {
		orphans = shardsOf(t, metrics[0])
		killed = time.Now()
		replicas[0].stop(t, syscall.SIGKILL)
	}, func() {
		handedOn(t, metrics[1:], orphans, "http://"+admin+"/metrics", killed)
	})
	if floor := int64(handoverRate * handoverFor.Seconds() * 3 / 4); acked < floor {
		t.Errorf("only %d events were acknowledged, want at least %d for the test to tell anything", acked, floor)
	}
	extensions := checkCauses(t, store, ids)
	if extensions < 2*handoverSessions {
		t.Errorf("%d extensions of %d sessions: they would have lived without", extensions, handoverSessions)
	}
	t.Logf("%d events in %v, %d extensions", acked, handoverFor, extensions)
}

// shardsOf lists the shards that an activity replica reads.
func shardsOf(t *testing.T, metrics string) []string {
	t.Helper()
	return labelValues(t, metrics, "stoker_activity_outstanding_entries", "shard")
}

// handedOn waits until others read the shards of a replica that was killed, and
// have caught up on them.
func handedOn(t *testing.T, metrics, orphans []string, store string, killed time.Time) {
	if len(orphans) == 0 {
		t.Error("the replica that was killed had no shards")
		return
	}
	adopted := func() bool {
		have := map[string]bool{}
		for _, m := range metrics {
			for _, s := range shardsOf(t, m) {
				have[s] = true
			}
		}
		for _, s := range orphans {
			if !have[s] {
				return false
			}
		}
		return true
	}
	caughtUp := func() bool {
		for _, s := range orphans {
			if metricWhere(t, store, "stoker_feed_watermark_age_seconds", `group="activity"`, `shard="`+s+`"`) > 2 {
				return false
			}
		}
		return true
	}
	for _, step := range []struct {
		what string
		done func() bool
	}{{"read by others", adopted}, {"caught up on", caughtUp}} {
		for !step.done() {
			if time.Since(killed) > 20*time.Second {
				t.Errorf("%d shards are not %s within 20 s", len(orphans), step.what)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		took := time.Since(killed).Round(10 * time.Millisecond)
		t.Logf("hand-over: %d shards %s %v after the kill", len(orphans), step.what, took)
		if took > 10*time.Second {
			t.Errorf("hand-over took %v, want at most 10 s", took)
		}
	}
}

// load appends events at a steady rate to each session in turn, whatever the
// answers take, and returns how many were acknowledged. A session that refuses
// one is over. kill runs after a while, and then watch beside the load.
func load(t *testing.T, store sessionv1.StorageServiceClient, ids []string, kill, watch func()) int64 {
	t.Helper()
	var acked, refused atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	const burst = 20
	work := make(chan int, handoverRate)
	for range 64 {
		wg.Go(func() {
			for n := range work {
				_, err := store.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{
					Id: ids[n%len(ids)], Events: []*sessionv1.Event{{Id: "n" + strconv.Itoa(n), Type: "input:text"}},
				})
				if err != nil {
					if refused.Add(1) == 1 {
						t.Errorf("event %d: %v", n, err)
					}
					continue
				}
				acked.Add(1)
			}
		})
	}
	var watching sync.WaitGroup
	tick := time.NewTicker(time.Second * burst / handoverRate)
	defer tick.Stop()
	dead := false
	for n := 0; time.Since(begin) < handoverFor; n += burst {
		if !dead && time.Since(begin) > handoverKill {
			dead = true
			kill()
			watching.Go(watch)
		}
		for i := range burst {
			work <- n + i
		}
		<-tick.C
	}
	close(work)
	wg.Wait()
	watching.Wait()
	if n := refused.Load(); n > 0 {
		t.Errorf("%d events were refused", n)
	}
	return acked.Load()
}

// checkCauses reads every session's log: it lives, its extensions are as many
// as were told, and no two have the same cause. It returns how many there were.
func checkCauses(t *testing.T, store sessionv1.StorageServiceClient, ids []string) int {
	t.Helper()
	var sum atomic.Int64
	parallel(t, len(ids), func(ctx context.Context, i int) error {
		s, err := store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: ids[i]})
		if err != nil {
			return err
		}
		if s.GetEndTime() != nil {
			return fmt.Errorf("session %s died", ids[i])
		}
		after := "0"
		page, err := store.ListEvents(ctx, &sessionv1.ListEventsRequest{Id: ids[i], After: &after, Limit: 1000})
		if err != nil {
			return err
		}
		causes := map[string]bool{}
		told := 0
		for _, e := range page.GetEvents() {
			if e.GetType() != "session:extended" {
				continue
			}
			told++
			cause := e.GetData().GetStructValue().GetFields()["causeEventId"].GetStringValue()
			if cause == "" || causes[cause] {
				return fmt.Errorf("session %s was extended twice by %q", ids[i], cause)
			}
			causes[cause] = true
		}
		if told != int(s.GetExtensionCount()) || page.GetTruncated() {
			return fmt.Errorf("session %s has %d extensions and tells of %d", ids[i], s.GetExtensionCount(), told)
		}
		sum.Add(int64(told))
		return nil
	})
	return int(sum.Load())
}
