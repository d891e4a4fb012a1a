//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// What the store under test runs with.
const (
	faultTimeout  = 200 * time.Millisecond
	faultFailures = 5
	faultDelay    = 500 * time.Millisecond
	// faultTTL is the life of a session: longer than any row, and than what a
	// clock jumps by.
	faultTTL = 3 * time.Hour
)

// faultEnv is a store in this process, on a Redis of its own behind a proxy
// that can spoil the connection, with clients that write down what they are
// answered.
type faultEnv struct {
	redis *redistest.Server
	raw   *goredis.Client
	proxy *toxiproxy.Proxy
	// redisArgs are further arguments of the server.
	redisArgs []string
	// front, sentinel and password are there in the rows that have some.
	front    *redistest.Front
	sentinel *redistest.Sentinel
	// former is the server that a name pointed to before it moved.
	former   *redistest.Server
	password string // the file with the store's
	// url is how another replica of the store connects, beside any proxy.
	url   string
	store sessionv1.StorageServiceClient
	admin sessionv1.AdminServiceClient
	// quiet keeps the clients from calling.
	quiet atomic.Bool
	// skew is by how much the store's clock differs from that of Redis, in ns.
	skew atomic.Int64

	mu sync.Mutex
	// acked is what was acknowledged: the events of each session, and when.
	acked map[string]map[string]time.Time
	ids   []string
	// deadlines are those that the creations were answered with.
	deadlines map[string]time.Time
	// born is when the creations were called, and when they were acknowledged, by the
	// clock of Redis, which runs on the same machine.
	born map[string][2]time.Time
	// gone are the acknowledged writes that lost did not find.
	gone  []goneWrite
	calls []faultCall
	// missing are sessions that a read said are not there though they were
	// acknowledged.
	missing int
	// badMarks are headers that say neither nothing nor all of it, once.
	badMarks []string
	opened   time.Time
}

// faultCall is one call of a client.
type faultCall struct {
	// op and id are what was called, and about which session, where that counts.
	op, id string

	begin time.Time
	took  time.Duration
	code  codes.Code
	write bool
	// stale: it was answered from what the store remembers. journaled: the
	// journal took it.
	stale, journaled bool
}

// now is the store's clock.
func (e *faultEnv) now() time.Time { return time.Now().Add(time.Duration(e.skew.Load())) }

// newProxy puts a proxy before a server until the test ends.
func newProxy(t *testing.T, addr string) *toxiproxy.Proxy {
	t.Helper()
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop()), "redis", freeAddr(t), addr)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// toxic spoils the connection until heal.
func (e *faultEnv) toxic(t *testing.T, spec string) {
	t.Helper()
	if _, err := e.proxy.Toxics.AddToxicJson(strings.NewReader(spec)); err != nil {
		t.Fatal(err)
	}
}

func (e *faultEnv) healProxy(*testing.T) { e.proxy.Toxics.ResetToxics(context.Background()) }

// note writes a call down.
func (e *faultEnv) note(c faultCall, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.took, c.code = time.Since(c.begin), status.Code(err)
	e.calls = append(e.calls, c)
}

// get reads a session, and says whether the answer is marked as an old one.
func (e *faultEnv) get(ctx context.Context, id string) (s *sessionv1.Session, stale bool, err error) {
	var h metadata.MD
	s, err = e.store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id}, grpc.Header(&h))
	by, age := h.Get("stoker-served-by"), h.Get("stoker-stale-for")
	if len(by) != len(age) || len(by) > 1 || len(by) == 1 && by[0] != "fallback" {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.badMarks = append(e.badMarks, fmt.Sprint(by, age))
	}
	return s, len(by) > 0, err
}

// drive reads and writes until stop is closed: each client at a steady pace,
// at most one call at a time.
func (e *faultEnv) drive(t *testing.T, stop <-chan struct{}) *sync.WaitGroup {
	t.Helper()
	var wg sync.WaitGroup
	client := func(do func(ctx context.Context, n int)) {
		wg.Go(func() {
			tick := time.NewTicker(4 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if e.quiet.Load() {
					continue
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				do(ctx, n)
				cancel()
			}
		})
	}
	for w := range 6 {
		client(func(ctx context.Context, n int) { e.write(ctx, w, n) })
	}
	for range 4 {
		client(func(ctx context.Context, _ int) { e.read(ctx) })
	}
	return &wg
}

func (e *faultEnv) write(ctx context.Context, w, n int) {
	begin := time.Now()
	if n%25 == 0 {
		s, err := e.store.CreateSession(ctx, &sessionv1.CreateSessionRequest{
			User: fmt.Sprint("user-", w), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
		})
		e.note(faultCall{begin: begin, write: true}, err)
		if err == nil {
			e.mu.Lock()
			e.acked[s.GetId()] = map[string]time.Time{}
			e.ids = append(e.ids, s.GetId())
			e.deadlines[s.GetId()] = s.GetExpireTime().AsTime()
			e.born[s.GetId()] = [2]time.Time{begin, time.Now()}
			e.mu.Unlock()
		}
		return
	}
	id := e.pick()
	if id == "" {
		return
	}
	event := fmt.Sprintf("e-%d-%d", w, n)
	_, err := e.store.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Id: event, Type: "input:text"}}})
	e.note(faultCall{begin: begin, write: true}, err)
	if err == nil {
		e.mu.Lock()
		e.acked[id][event] = time.Now()
		e.mu.Unlock()
	}
}

func (e *faultEnv) read(ctx context.Context) {
	id := e.pick()
	if id == "" {
		return
	}
	begin := time.Now()
	_, stale, err := e.get(ctx, id)
	e.note(faultCall{begin: begin, stale: stale}, err)
	if status.Code(err) == codes.NotFound {
		e.mu.Lock()
		e.missing++
		e.mu.Unlock()
	}
}

func (e *faultEnv) pick() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ids) == 0 {
		return ""
	}
	return e.ids[rand.IntN(len(e.ids))]
}

// watchBreakers remembers when one was first seen open.
func (e *faultEnv) watchBreakers(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		list, err := e.admin.ListBreakers(context.Background(), &sessionv1.ListBreakersRequest{})
		if err != nil {
			continue
		}
		for _, b := range list.GetBreakers() {
			if b.GetClass() != "stream" && b.GetState() == sessionv1.Breaker_OPEN {
				e.mu.Lock()
				e.opened = time.Now()
				e.mu.Unlock()
				return
			}
		}
	}
}

// byCode spells how many calls failed, by code.
func byCode(calls []faultCall) string {
	counts := map[codes.Code]int{}
	for _, c := range calls {
		if c.code != codes.OK {
			counts[c.code]++
		}
	}
	if len(counts) == 0 {
		return "none"
	}
	var out []string
	for _, c := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf("%v %d", c, counts[c]))
	}
	return strings.Join(out, ", ")
}
