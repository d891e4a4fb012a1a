//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// clusterLoad calls about sessions of a cluster: each client at its own pace,
// one call at a time, so that latency is measured and not how much fits in.
type clusterLoad struct {
	store sessionv1.StorageServiceClient
	// byNode are the sessions of each node, and of the control.
	byNode  map[string][]string
	control sessionv1.StorageServiceClient

	mu     sync.Mutex
	took   map[string][]time.Duration
	failed map[string]map[codes.Code]int
}

// control is a store on a Redis that has nothing to do with the cluster, under
// the same load at the same time: what becomes slower there is the machine's.
const control = "control"

// addControl puts the control under load, too.
func (l *clusterLoad) addControl(t *testing.T) {
	t.Helper()
	l.control = sessionv1.NewStorageServiceClient(openStore(t, nil, "--redis-url", redistest.Start(t).URL()))
	for n := range 100 {
		s, err := l.control.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", n)})
		must(t, err)
		l.byNode[control] = append(l.byNode[control], s.GetId())
	}
}

func newClusterLoad(t *testing.T, cluster *redistest.Cluster, store sessionv1.StorageServiceClient) *clusterLoad {
	t.Helper()
	l := &clusterLoad{store: store, byNode: map[string][]string{}}
	for n := range 300 {
		_, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", n)})
		must(t, err)
	}
	for _, node := range cluster.Nodes {
		client := goredis.NewClient(&goredis.Options{Addr: node.Addr})
		keys, err := client.Keys(t.Context(), "stoker:*:session:*").Result()
		must(t, err)
		must(t, client.Close())
		for _, k := range keys {
			l.byNode[node.Addr] = append(l.byNode[node.Addr], k[strings.LastIndexByte(k, ':')+1:])
		}
		if len(keys) < 30 {
			t.Fatalf("node %s has only %d of 300 sessions", node.Addr, len(keys))
		}
	}
	return l
}

// round drives the load for a while and returns, by node, the p99 and what
// failed.
func (l *clusterLoad) round(ctx context.Context, lasts time.Duration) (p99 map[string]time.Duration, failed map[string]map[codes.Code]int) {
	const clients, think = 4, 5 * time.Millisecond // clients of each node
	l.took, l.failed = map[string][]time.Duration{}, map[string]map[codes.Code]int{}
	end := time.Now().Add(lasts)
	var wg sync.WaitGroup
	for node, ids := range l.byNode {
		store := l.store
		if node == control {
			store = l.control
		}
		for c := range clients {
			wg.Go(func() {
				for n := c; time.Now().Before(end); n++ {
					id := ids[n%len(ids)]
					begin := time.Now()
					var err error
					if n%2 == 0 {
						_, err = store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id})
					} else {
						_, err = store.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Type: "input:text"}}})
					}
					l.note(node, time.Since(begin), err)
					time.Sleep(think)
				}
			})
		}
	}
	wg.Wait()
	p99 = map[string]time.Duration{}
	for node, took := range l.took {
		slices.Sort(took)
		p99[node] = took[len(took)*99/100]
	}
	return p99, l.failed
}

func (l *clusterLoad) note(node string, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took[node] = append(l.took[node], took)
	if err != nil {
		if l.failed[node] == nil {
			l.failed[node] = map[codes.Code]int{}
		}
		l.failed[node][status.Code(err)]++
	}
}

// guestTTL is longer than it takes to measure before the death, and over by the
// end of what is measured after it.
const guestTTL = 12 * time.Second

// nodeWith returns the node of a cluster that has a key.
func nodeWith(t *testing.T, cluster *redistest.Cluster, key string) *redistest.Server {
	t.Helper()
	for _, node := range cluster.Nodes {
		client := goredis.NewClient(&goredis.Options{Addr: node.Addr})
		keys, err := client.Keys(t.Context(), key).Result()
		must(t, err)
		must(t, client.Close())
		if len(keys) > 0 {
			return node
		}
	}
	t.Fatalf("no node has %s", key)
	return nil
}

// unswept counts the sessions of a node that are past their deadline and were
// not let go.
func unswept(t *testing.T, node string) (past, left int) {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: node})
	defer client.Close()
	keys, err := client.Keys(t.Context(), "stoker:*:session:*").Result()
	must(t, err)
	for _, k := range keys {
		v, err := client.HMGet(t.Context(), k, "st", "exp").Result()
		must(t, err)
		exp, err := strconv.ParseInt(v[1].(string), 10, 64)
		must(t, err)
		if time.UnixMilli(exp).Before(time.Now().Add(-time.Second)) {
			past++
			if v[0] == "0" {
				left++
			}
		}
	}
	return past, left
}

// TestDeadMasterOfACluster: of three masters without replicas one dies. Only
// its breakers open, sessions of the others meet no error and are let go when
// they are due, and their p99 stays within twice of what it was, as far as the
// machine stays what it was.
func TestDeadMasterOfACluster(t *testing.T) {
	for name, die := range map[string]func(*redistest.Server) error{
		"killed": (*redistest.Server).Kill, "stopped": (*redistest.Server).Pause,
	} {
		t.Run(name, func(t *testing.T) {
			cluster := redistest.StartCluster(t, 3)
			for _, node := range cluster.Nodes {
				// Else a cluster answers nobody once a slot has no master.
				client := goredis.NewClient(&goredis.Options{Addr: node.Addr})
				must(t, client.ConfigSet(t.Context(), "cluster-require-full-coverage", "no").Err())
				must(t, client.Close())
			}
			conn := openStore(t, nil, "--redis-url", cluster.URL(), "--breaker-delay", "1s")
			store, admin := sessionv1.NewStorageServiceClient(conn), sessionv1.NewAdminServiceClient(conn)
			l := newClusterLoad(t, cluster, store)
			l.addControl(t)
			victim := nodeWith(t, cluster, "stoker:{s0}:meta") // what is not about a session is there, too
			dead := victim.Addr
			for n := range 30 { // to be let go while it is dead
				_, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{
					User: fmt.Sprint("guest-", n), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(guestTTL)},
				})
				must(t, err)
			}

			const rounds = 7
			p99s := func(when string) map[string]time.Duration {
				all := map[string][]time.Duration{}
				for r := range rounds {
					p99, failed := l.round(t.Context(), time.Second)
					for node := range l.byNode {
						if node == dead && when == "after" {
							for code := range failed[node] {
								if code != codes.Unavailable {
									t.Errorf("sessions of the dead node are answered %v", code)
								}
							}
							if r > 0 && len(failed[node]) == 0 {
								t.Error("no call to the dead node fails: it is not dead")
							}
							continue
						}
						if len(failed[node]) > 0 {
							t.Errorf("%s: sessions of %s, which lives, are answered %v", when, node, failed[node])
						}
						if node != dead {
							all[node] = append(all[node], p99[node])
						}
					}
					t.Logf("%s, round %d: p99 %v", when, r, p99)
				}
				medians := map[string]time.Duration{}
				for node, of := range all {
					slices.Sort(of)
					medians[node] = of[len(of)/2]
				}
				return medians
			}
			_, _ = l.round(t.Context(), time.Second) // connections and caches
			before := p99s("before")
			must(t, die(victim))
			after := p99s("after")
			machine := max(1, float64(after[control])/float64(before[control]))
			t.Logf("the control: p99 %v before and %v after", before[control], after[control])
			delete(before, control)
			for node, was := range before {
				t.Logf("sessions of %s, which lives: p99 %v before and %v after", node, was, after[node])
				if limit := time.Duration(2 * machine * float64(was)); after[node] > limit {
					t.Errorf("p99 of the sessions of %s: %v, want at most %v", node, after[node], limit)
				}
			}
			for node := range before {
				eventually(t, guestTTL, "sessions on the living nodes are let go", func() bool {
					past, left := unswept(t, node)
					return past > 0 && left == 0
				})
			}
			list, err := admin.ListBreakers(t.Context(), &sessionv1.ListBreakersRequest{})
			must(t, err)
			opened := map[string]bool{}
			for _, b := range list.GetBreakers() {
				if b.GetTotalTrips() > 0 {
					opened[b.GetName()] = true
				}
				if b.GetNode() != dead && (b.GetTotalTrips() > 0 || b.GetState() != sessionv1.Breaker_CLOSED) {
					t.Errorf("of a node that lives: %v", b)
				}
			}
			if !opened["read@"+dead] || !opened["write@"+dead] && !opened["free@"+dead] {
				t.Errorf("opened: %v, want read, and write or free, of %s", opened, dead)
			}
		})
	}
}
