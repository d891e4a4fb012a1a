//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
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
		shared := 0
		for _, m := range metrics {
			n := len(shardsOf(t, m))
			if n == 0 {
				return false
			}
			shared += n
		}
		return shared == 64
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
	wait := load(t, store, ids)
	time.Sleep(handoverKill) // under load, not for anything
	orphans := shardsOf(t, metrics[0])
	killed := time.Now()
	replicas[0].stop(t, syscall.SIGKILL)
	handedOn(t, metrics[1:], orphans, "http://"+admin+"/metrics", killed)
	acked := wait()
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
// have acknowledged what came in between: nobody else can have done that.
func handedOn(t *testing.T, metrics, orphans []string, store string, killed time.Time) {
	t.Helper()
	if len(orphans) == 0 {
		t.Fatal("the replica that was killed had no shards")
	}
	step := func(what string, done func() bool) {
		t.Helper()
		eventually(t, 20*time.Second, "the orphaned shards are "+what, done)
		took := time.Since(killed).Round(10 * time.Millisecond)
		t.Logf("hand-over: %d shards %s %v after the kill", len(orphans), what, took)
		if took > 10*time.Second {
			t.Errorf("hand-over took %v, want at most 10 s", took)
		}
	}
	step("read by others", func() bool {
		have := map[string]bool{}
		for _, m := range metrics {
			for _, s := range shardsOf(t, m) {
				have[s] = true
			}
		}
		return all(orphans, func(s string) bool { return have[s] })
	})
	adopted := time.Now()
	step("acknowledged by others", func() bool {
		since := time.Since(adopted).Seconds()
		age := map[string]float64{}
		samples(t, store, "stoker_feed_watermark_age_seconds", func(labels string, v float64) {
			if strings.Contains(labels, `group="activity"`) {
				_, rest, _ := strings.Cut(labels, `shard="`)
				shard, _, _ := strings.Cut(rest, `"`)
				age[shard] = v
			}
		})
		return all(orphans, func(s string) bool {
			a, found := age[s]
			if !found {
				t.Fatalf("no watermark age of shard %s", s)
			}
			return a < since
		})
	})
}

func all(list []string, ok func(string) bool) bool {
	return !slices.ContainsFunc(list, func(s string) bool { return !ok(s) })
}

// load appends events at a steady rate to each session in turn, whatever the
// answers take, beside the test. wait returns how many were acknowledged; that
// one was refused fails the test.
func load(t *testing.T, store sessionv1.StorageServiceClient, ids []string) (wait func() int64) {
	t.Helper()
	const burst = 20
	ctx, cancel := context.WithCancel(t.Context())
	var acked, refused atomic.Int64
	var wg sync.WaitGroup
	work := make(chan int, handoverRate)
	for range 64 {
		wg.Go(func() {
			for n := range work {
				_, err := store.AppendEvents(ctx, &sessionv1.AppendEventsRequest{
					Id: ids[n%len(ids)], Events: []*sessionv1.Event{{Id: "n" + strconv.Itoa(n), Type: "input:text"}},
				})
				switch {
				case err == nil:
					acked.Add(1)
				case ctx.Err() == nil && refused.Add(1) == 1:
					t.Errorf("event %d: %v", n, err)
				}
			}
		})
	}
	wg.Go(func() {
		defer close(work)
		begin := time.Now()
		tick := time.NewTicker(time.Second * burst / handoverRate)
		defer tick.Stop()
		for n := 0; time.Since(begin) < handoverFor && ctx.Err() == nil; n += burst {
			for i := range burst {
				work <- n + i
			}
			<-tick.C
		}
	})
	t.Cleanup(func() { // a test that failed early does not wait for the rest
		cancel()
		wg.Wait()
	})
	return func() int64 {
		wg.Wait()
		if n := refused.Load(); n > 0 {
			t.Errorf("%d events were refused", n)
		}
		return acked.Load()
	}
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
		causes, times := map[string]bool{}, map[string]bool{}
		told := 0
		for _, e := range page.GetEvents() {
			if e.GetType() != "session:extended" {
				continue
			}
			told++
			data := e.GetData().GetStructValue().GetFields()
			cause, at := data["causeEventId"].GetStringValue(), data["activityTime"].GetStringValue()
			if cause == "" || at == "" || causes[cause] || times[at] {
				return fmt.Errorf("session %s was extended twice by %q at %q", ids[i], cause, at)
			}
			causes[cause], times[at] = true, true
		}
		if told != int(s.GetExtensionCount()) || page.GetTruncated() {
			return fmt.Errorf("session %s has %d extensions and tells of %d", ids[i], s.GetExtensionCount(), told)
		}
		sum.Add(int64(told))
		return nil
	})
	return int(sum.Load())
}
