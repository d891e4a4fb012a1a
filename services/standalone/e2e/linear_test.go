//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// What a history is made of. It is short, since what it takes to check one
// grows with the calls that overlap, and those without an answer overlap with
// all that follow.
const (
	linClients = 4
	linOps     = 14 // answered calls of a client at most
	linUnknown = 2  // after as many unknown outcomes a client only reads
)

// linHistory is what a few clients did with one session.
type linHistory struct {
	user  string
	store sessionv1.StorageServiceClient
	begin time.Time

	mu  sync.Mutex
	id  string // of the session that was last seen, known to all
	rev int64
	ops []porcupine.Operation
	bad []string
	n   int
}

// client calls until it has had enough answers, or time is up.
func (h *linHistory) client(ctx context.Context, n int, until time.Time) {
	unknown := 0
	for done := 0; done < linOps && time.Now().Before(until); {
		in := h.choose(unknown < linUnknown)
		out, stale := h.call(ctx, n, in)
		switch {
		case out.unknown && in.kind != linGet:
			unknown++
			fallthrough
		case out.unknown:
			time.Sleep(time.Duration(20+rand.IntN(60)) * time.Millisecond)
		case !stale:
			done++
		}
		// Most calls come close together, so that they meet.
		pause := rand.IntN(3)
		if rand.IntN(4) == 0 {
			pause = 20 + rand.IntN(100)
		}
		time.Sleep(time.Duration(pause) * time.Millisecond)
	}
}

// choose decides on a call.
func (h *linHistory) choose(writes bool) linIn {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	in := linIn{kind: linGet, id: h.id}
	value := fmt.Sprint("v", h.n)
	switch p := rand.IntN(100); {
	case h.id == "" && !writes:
		return linIn{kind: linGet, id: "s0"} // there is nothing to ask about
	case writes && (h.id == "" || p < 8):
		return linIn{kind: linCreate, value: value}
	case !writes || p < 45:
	case p < 60:
		in.kind, in.value = linUpdate, value
	case p < 75:
		in.kind, in.value, in.etag = linUpdate, value, h.rev
	case p < 93:
		in.kind = linExtend
	default:
		in.kind = linDelete
	}
	return in
}

// call makes a call and writes it down. stale: the answer was announced as one
// that may be of the past, and is no part of the history.
func (h *linHistory) call(ctx context.Context, client int, in linIn) (out linOut, stale bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var header metadata.MD
	begin := time.Since(h.begin)
	out, err := h.send(ctx, in, &header)
	end := time.Since(h.begin)
	h.mu.Lock()
	defer h.mu.Unlock()
	out.code = status.Code(err)
	switch out.code {
	case codes.OK, codes.NotFound, codes.Aborted:
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		out.unknown = true
	default:
		h.bad = append(h.bad, fmt.Sprintf("%v: %v", in.kind, err))
		out.unknown = true
	}
	stale = len(header.Get("stoker-served-by")) > 0
	if stale || out.unknown && in.kind == linGet || in.id == "s0" {
		return out, stale // says nothing
	}
	op := porcupine.Operation{ClientId: client, Input: in, Output: out, Call: int64(begin), Return: int64(end)}
	if out.unknown {
		op.Return = math.MaxInt64 // it may take effect at any time from now on
	}
	h.ops = append(h.ops, op)
	if out.rev != 0 {
		h.id, h.rev = out.id, out.rev
	}
	return out, stale
}

var (
	linPolicy = &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(time.Hour), Extension: durationpb.New(time.Second), MaxExtensions: proto.Int32(100),
		Strategy: sessionv1.TTLPolicy_EVERY_ACTIVITY,
	}
	linMask = &fieldmaskpb.FieldMask{Paths: []string{"data"}}
)

func (h *linHistory) send(ctx context.Context, in linIn, header *metadata.MD) (linOut, error) {
	switch in.kind {
	case linCreate:
		return seen(h.store.CreateSession(ctx, &sessionv1.CreateSessionRequest{
			User: h.user, RequestId: "the-one", Data: structpb.NewStringValue(in.value), TtlPolicy: linPolicy,
		}))
	case linUpdate:
		etag := ""
		if in.etag != 0 {
			etag = strconv.FormatInt(in.etag, 10)
		}
		return seen(h.store.UpdateSession(ctx, &sessionv1.UpdateSessionRequest{
			Id: in.id, Etag: etag, UpdateMask: linMask, Session: &sessionv1.Session{Data: structpb.NewStringValue(in.value)},
		}))
	case linExtend:
		r, err := h.store.ExtendTTL(ctx, &sessionv1.ExtendTTLRequest{Id: in.id, EventId: fmt.Sprint("e", rand.Uint64())})
		return linOut{outcome: r.GetOutcome(), linSession: linSession{ext: r.GetAfter().GetExtensionCount()}}, err
	case linDelete:
		_, err := h.store.DeleteSession(ctx, &sessionv1.DeleteSessionRequest{Id: in.id})
		return linOut{}, err
	default:
		return seen(h.store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: in.id}, grpc.Header(header)))
	}
}

func seen(s *sessionv1.Session, err error) (linOut, error) {
	return linOut{linSession: linSession{id: s.GetId(), value: s.GetData().GetStringValue(), rev: s.GetRevision(), ext: s.GetExtensionCount()}}, err
}

// linRun makes histories side by side and calls meanwhile, a tenth of the way.
func linRun(t *testing.T, histories int, lasts time.Duration, over func(int) sessionv1.StorageServiceClient, meanwhile func()) []*linHistory {
	t.Helper()
	var wg sync.WaitGroup
	until := time.Now().Add(lasts)
	out := make([]*linHistory, histories)
	for i := range out {
		h := &linHistory{user: fmt.Sprint("user-", rand.Uint64()), store: over(i), begin: time.Now()}
		out[i] = h
		for c := range linClients {
			wg.Go(func() { h.client(context.Background(), c, until) })
		}
	}
	if meanwhile != nil {
		time.Sleep(lasts / 10)
		meanwhile()
	}
	wg.Wait()
	return out
}

// check judges a history.
func check(history []porcupine.Operation) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(linModel(), history, 20*time.Second)
}

// linOutages are what happens to Redis in the middle of the histories.
var linOutages = []fault{
	{
		name: "kill -9 and restart", lasts: 250 * time.Millisecond,
		inject: func(t *testing.T, e *faultEnv) { must(t, e.redis.Kill()) },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.redis.Restart(t.Context())) },
	},
	{
		name: "SIGSTOP", lasts: 600 * time.Millisecond,
		inject: func(t *testing.T, e *faultEnv) { must(t, e.redis.Pause()) },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.redis.Resume()) },
	},
	{
		name: "connections cut", lasts: 200 * time.Millisecond,
		inject: func(_ *testing.T, e *faultEnv) { e.proxy.Stop() },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.proxy.Start()) },
	},
	{
		name: "reset in the middle of replies", lasts: 300 * time.Millisecond,
		inject: func(t *testing.T, e *faultEnv) {
			e.toxic(t, `{"type":"limit_data","stream":"downstream","toxicity":0.8,"attributes":{"bytes":700}}`)
		},
		heal: func(t *testing.T, e *faultEnv) { e.healProxy(t) },
	},
	{
		name: "replies later than the timeout", lasts: 700 * time.Millisecond,
		inject: func(t *testing.T, e *faultEnv) {
			e.toxic(t, `{"type":"latency","stream":"downstream","attributes":{"latency":160,"jitter":150}}`)
		},
		heal: func(t *testing.T, e *faultEnv) { e.healProxy(t) },
	},
}

// TestLinearizableThroughOutages: what concurrent clients see of a session, while
// Redis goes and comes back, is what they would have seen had their calls been
// carried out one by one. Once with breakers that open, which keeps calls away,
// and once with breakers that do not, so that there are retries all along.
func TestLinearizableThroughOutages(t *testing.T) {
	const histories = 10
	rounds := 2
	if n, err := strconv.Atoi(os.Getenv("STOKER_LINEAR_ROUNDS")); err == nil {
		rounds = n
	}
	for _, f := range linOutages {
		for breakers, failures := range map[string]string{"": "5", ", breakers held closed": "1000"} {
			t.Run(f.name+breakers, func(t *testing.T) {
				e := newFaultEnv(t, "--breaker-delay", "100ms", "--breaker-failures", failures)
				var sum linSum
				for range rounds {
					sum.add(t, linRun(t, histories, 2*time.Second,
						func(int) sessionv1.StorageServiceClient { return e.store },
						func() { f.strike(t, e) }))
					eventually(t, 10*time.Second, "the store answers again", func() bool {
						_, err := e.store.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{})
						_, err2 := e.store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{})
						return err == nil && err2 == nil
					})
				}
				t.Log(sum)
				if !e.faulted(t) {
					t.Error("no breaker has seen a failure: there was no outage")
				}
				if sum.ops < rounds*histories*linClients*linOps/4 {
					t.Errorf("only %d calls in %d histories: too few to tell anything", sum.ops, sum.histories)
				}
				if sum.undecided > sum.histories/10 {
					t.Errorf("%d histories could not be decided in time", sum.undecided)
				}
			})
		}
	}
}

// faulted says whether any breaker was told of a failure.
func (e *faultEnv) faulted(t *testing.T) bool {
	t.Helper()
	list, err := e.admin.ListBreakers(t.Context(), &sessionv1.ListBreakersRequest{})
	must(t, err)
	return slices.ContainsFunc(list.GetBreakers(), func(b *sessionv1.Breaker) bool { return b.GetLastFailureTime() != nil })
}

// linSum counts what was checked. retried are the histories that only a second
// try of the store's own explains.
type linSum struct{ histories, ops, unknown, undecided, retried, illegal int }

func (s linSum) String() string {
	return fmt.Sprintf("%d histories of %d calls, %d of them without an answer: %d not linearizable; %d only by the answer of a second try, %d undecided",
		s.histories, s.ops, s.unknown, s.illegal, s.retried, s.undecided)
}

func (s *linSum) add(t *testing.T, histories []*linHistory) {
	t.Helper()
	for _, h := range histories {
		s.histories++
		s.ops += len(h.ops)
		for _, op := range h.ops {
			if op.Output.(linOut).unknown {
				s.unknown++
			}
		}
		for _, bad := range h.bad {
			t.Error(bad)
		}
		result := check(h.ops)
		if result == porcupine.Illegal {
			if result = check(twice(h.ops)); result == porcupine.Ok {
				s.retried++
			}
		}
		switch result {
		case porcupine.Unknown:
			s.undecided++
		case porcupine.Illegal:
			s.illegal++
			if s.illegal <= 2 {
				t.Errorf("not linearizable:\n%s", spell(h.ops))
			}
		}
	}
}

// TestLinearizabilityCheckCatches: the check passes what is right, and catches
// each of these bugs, planted between the clients and a store that is well.
func TestLinearizabilityCheckCatches(t *testing.T) {
	e := newFaultEnv(t)
	for name, plant := range linPlanted {
		t.Run(name, func(t *testing.T) {
			caught := 0
			for range 5 {
				for _, h := range linRun(t, 6, time.Second, func(int) sessionv1.StorageServiceClient { return plant(e.store) }, nil) {
					if len(h.bad) > 0 {
						t.Fatal(h.bad)
					}
					result := check(h.ops)
					if name == "none" && result != porcupine.Ok {
						t.Fatalf("%s, want linearizable:\n%s", result, spell(h.ops))
					}
					// Nor may it pass for the answer of a second try.
					if result == porcupine.Illegal && check(twice(h.ops)) == porcupine.Illegal {
						caught++
					}
				}
				if caught > 0 {
					break
				}
			}
			if caught == 0 && name != "none" {
				t.Error("not caught")
			}
		})
	}
}
