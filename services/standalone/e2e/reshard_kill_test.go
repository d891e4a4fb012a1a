//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// killLossWindow is how long before the death of a master a write must have been
// acknowledged to survive it: replication is asynchronous.
const killLossWindow = time.Second

// killGrace is how long after the kill a reply of the killed master may still
// reach its caller.
const killGrace = 50 * time.Millisecond

// ackedWrite is an acknowledged event of a session, or its creation where event
// is empty.
type ackedWrite struct {
	id, event string
	at        time.Time
}

// killMaster kills a master under load and measures, once its replica serves,
// how many acknowledged writes were lost.
func (r *reshard) killMaster(t *testing.T) {
	t.Helper()
	slot := r.cluster.SlotOf(t, shardKey(shardOf(r.seeds[0])))
	victim := r.cluster.MasterOf(t, slot)
	slots := r.cluster.SlotsOf(t, victim)
	r.cluster.ReplicaOf(t, victim) // there is one, and it is in sync
	var mu sync.Mutex
	var acked []ackedWrite
	stop := make(chan struct{})
	var calling sync.WaitGroup
	for w := range 4 {
		n, ids := 0, []string(nil)
		calling.Go(func() {
			paceEvery(stop, clientPace/2, func(ctx context.Context) {
				n++
				write := ackedWrite{event: fmt.Sprintf("k-%d-%d", w, n)}
				var err error
				if len(ids) < 24 || n%20 == 0 {
					var s *sessionv1.Session
					write.event = ""
					s, err = r.load.store.CreateSession(ctx, &sessionv1.CreateSessionRequest{
						User: fmt.Sprintf("killed-%d-%d", w, n), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
					})
					if write.id = s.GetId(); err == nil && len(ids) < 24 {
						ids = append(ids, write.id)
					}
				} else {
					write.id = ids[n%len(ids)]
					_, err = r.load.store.AppendEvents(ctx, &sessionv1.AppendEventsRequest{
						Id: write.id, Events: []*sessionv1.Event{{Id: write.event, Type: "input:text"}},
					})
				}
				write.at = time.Now()
				mu.Lock()
				defer mu.Unlock()
				switch c := status.Code(err); {
				case err == nil:
					acked = append(acked, write)
				case c != codes.Unavailable:
					r.load.fault("around the kill: %v", err)
				}
			})
		})
	}
	time.Sleep(3 * time.Second)
	killed := time.Now()
	must(t, r.cluster.Node(t, victim).Kill())
	successor := r.cluster.AwaitSuccessor(t, slots[0], victim)
	promoted := time.Since(killed)
	r.load.awaitRest(t, r.admin, r.seeds)
	served := time.Since(killed)
	time.Sleep(time.Second)
	close(stop)
	calling.Wait()
	r.load.awaitRest(t, r.admin, r.seeds)
	r.load.report(t, "around the kill")

	owned := map[int]bool{}
	for s := range reshardShards {
		owned[s] = slices.Contains(slots, r.cluster.SlotOf(t, shardKey(s)))
	}
	lost, before, oldest := 0, 0, time.Duration(0)
	for _, w := range r.missing(t, acked) {
		age := killed.Sub(w.at)
		if !owned[shardOf(w.id)] || age > killLossWindow || age < -killGrace {
			t.Errorf("lost: event %q of %s, acknowledged %v before the kill; on the killed master: %v", w.event, w.id, age, owned[shardOf(w.id)])
		}
		lost, oldest = lost+1, max(oldest, age)
	}
	for _, w := range acked {
		if age := killed.Sub(w.at); owned[shardOf(w.id)] && age > 0 && age < killLossWindow {
			before++
		}
	}
	if before < 20 {
		t.Errorf("only %d writes of the killed master were acknowledged in the last %v", before, killLossWindow)
	}
	t.Logf("%s took over from %s after %v, the store served all shards after %v; %d of %d acknowledged writes in the last %d ms before the kill were lost, the oldest acknowledged %v before",
		successor, victim, promoted.Round(time.Millisecond), served.Round(time.Millisecond), lost, before, killLossWindow.Milliseconds(), oldest.Round(time.Millisecond))
}

// missing returns the acknowledged writes that are not there.
func (r *reshard) missing(t *testing.T, acked []ackedWrite) (lost []ackedWrite) {
	t.Helper()
	logs := map[string]map[string]bool{}
	for _, w := range acked {
		if logs[w.id] != nil {
			continue
		}
		have := map[string]bool{}
		_, err := r.load.store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: w.id})
		switch {
		case status.Code(err) == codes.NotFound:
		case err != nil:
			t.Fatal(err)
		default:
			have[""] = true
			for _, e := range allEvents(t, r.load.store, w.id) {
				have[e.GetId()] = true
			}
		}
		logs[w.id] = have
	}
	for _, w := range acked {
		if !logs[w.id][w.event] {
			lost = append(lost, w)
		}
	}
	return lost
}
