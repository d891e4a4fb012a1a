package consumer

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// movingStore is a store on a Redis Cluster that moves the slot of the session
// "moving": its first misses of that session are NOT_FOUND.
type movingStore struct {
	mu sync.Mutex
	// misses is how many are still to come; readMisses those of reads.
	misses, readMisses int
	// asError reports a miss as the item's error and not as its outcome.
	asError bool
	reads   map[string]int
	// at is when each report of the session came.
	at      []time.Time
	reports reports
}

func (m *movingStore) fake() *fakeStore {
	m.reads = map[string]int{}
	return &fakeStore{GetFn: m.get, ExtendFn: m.extend}
}

func (m *movingStore) get(ctx context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(req.GetIds()) == 1 {
		m.reads[req.GetIds()[0]]++
	}
	for _, id := range req.GetIds() {
		if id == "malformed" {
			return nil, grpcstatus.Error(codes.InvalidArgument, "ids")
		}
	}
	out, err := everySession(ctx, req)
	for _, r := range out.GetResults() {
		code := codes.OK
		switch {
		case r.GetId() == "moving" && m.readMisses > 0:
			m.readMisses--
			code = codes.NotFound
		case r.GetId() == "missing":
			code = codes.NotFound
		case r.GetId() == "refused":
			code = codes.InvalidArgument
		}
		if code != codes.OK {
			r.Answer = &sessionv1.BatchGetSessionsResponse_Result_Error{Error: &status.Status{Code: int32(code)}}
		}
	}
	return out, err
}

func (m *movingStore) extend(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := &sessionv1.BatchExtendTTLRequest{}
	missed := map[string]bool{}
	for _, it := range req.GetItems() {
		if it.GetId() == "moving" {
			m.at = append(m.at, time.Now())
			if m.misses > 0 {
				m.misses--
				missed[it.GetId()] = true
				continue
			}
		}
		kept.Items = append(kept.Items, it)
	}
	judged := m.reports.take(kept)
	out := &sessionv1.BatchExtendTTLResponse{}
	for _, it := range req.GetItems() {
		if !missed[it.GetId()] {
			out.Results = append(out.Results, judged.Results[0])
			judged.Results = judged.Results[1:]
			continue
		}
		res := &sessionv1.BatchExtendTTLResponse_Result{Id: it.GetId(), Answer: &sessionv1.BatchExtendTTLResponse_Result_Response{
			Response: &sessionv1.ExtendTTLResponse{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND},
		}}
		if m.asError {
			res.Answer = &sessionv1.BatchExtendTTLResponse_Result_Error{Error: &status.Status{Code: int32(codes.NotFound)}}
		}
		out.Results = append(out.Results, res)
	}
	return out, nil
}

func TestNotFoundOnceLosesNoActivity(t *testing.T) {
	for name, store := range map[string]*movingStore{
		"outcome": {misses: 1}, "error": {misses: 1, asError: true}, "read": {readMisses: 1}, "read, then outcome": {misses: 1, readMisses: 1},
	} {
		t.Run(name, func(t *testing.T) {
			misses := store.misses
			r := start(t, store.fake())
			for range 3 {
				r.feed.add("moving", "input:text")
				r.feed.add("other", "input:text")
			}
			eventually(t, "everything acknowledged", r.allAcked)
			for _, id := range []string{"moving", "other"} {
				if store.reports.last(id).IsZero() {
					t.Errorf("no activity of %s was reported", id)
				}
			}
			if !r.tracker.Tracked("moving") {
				t.Error("the session is not tracked any more")
			}
			store.mu.Lock()
			defer store.mu.Unlock()
			// The pause is 20 ms, counted in whole milliseconds.
			if misses == 1 && (len(store.at) < 2 || store.at[1].Sub(store.at[0]) < 19*time.Millisecond) {
				t.Errorf("reported at %v, want a second time after the pause", store.at)
			}
		})
	}
}

// Only NOT_FOUND is uncertain: an id that the store refuses is not asked for
// again.
func TestReadsAreLookedAtTwiceOnlyWhenNotFound(t *testing.T) {
	store := &movingStore{}
	r := start(t, store.fake(), func(c *Config, _ *tracker.Config) { c.Batch = 1 })
	for _, id := range []string{"missing", "refused", "malformed"} {
		r.feed.add(id, "input:text")
	}
	eventually(t, "everything acknowledged", r.allAcked)
	store.mu.Lock()
	defer store.mu.Unlock()
	if want := map[string]int{"missing": 2, "refused": 1, "malformed": 1}; !maps.Equal(store.reads, want) {
		t.Errorf("asked %v, want %v", store.reads, want)
	}
}

func TestEndWaitsForTheSecondLook(t *testing.T) {
	store := &movingStore{misses: 1}
	r := start(t, store.fake(), func(_ *Config, tc *tracker.Config) { tc.Flush = time.Hour })
	r.feed.add("moving", "input:text")
	eventually(t, "seen", func() bool { return r.tracker.Stats().Counted[2] == 1 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if store.reports.last("moving").IsZero() || !r.allAcked() {
		t.Errorf("reported %v, all acknowledged %v", store.reports.last("moving"), r.allAcked())
	}
}

// A second look that is not due within the grace is left to redelivery.
func TestEndDoesNotWaitPastTheGrace(t *testing.T) {
	for name, store := range map[string]*movingStore{"report": {misses: 1}, "read": {readMisses: 1}} {
		t.Run(name, func(t *testing.T) {
			r := start(t, store.fake(), func(c *Config, tc *tracker.Config) {
				c.Grace, tc.RecheckDelay = 50*time.Millisecond, time.Hour
			})
			r.feed.add("moving", "input:text")
			eventually(t, "missed", func() bool {
				store.mu.Lock()
				defer store.mu.Unlock()
				return store.misses+store.readMisses == 0
			})
			begin := time.Now()
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("the end took %s", took)
			}
			if acked, _, _ := r.feed.state(); acked != 0 {
				t.Error("acknowledged after a first NOT_FOUND")
			}
		})
	}
}

// countingProvider gives meters whose counters add up by name and outcome.
type countingProvider struct {
	noop.MeterProvider
	counts map[string]map[string]int64
}

func (p countingProvider) Meter(string, ...metric.MeterOption) metric.Meter {
	return countingMeter{counts: p.counts}
}

type countingMeter struct {
	noop.Meter
	counts map[string]map[string]int64
}

func (m countingMeter) Int64Counter(name string, _ ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	m.counts[name] = map[string]int64{}
	return counter{counts: m.counts[name]}, nil
}

type counter struct {
	noop.Int64Counter
	counts map[string]int64
}

func (c counter) Add(_ context.Context, n int64, opts ...metric.AddOption) {
	set := metric.NewAddConfig(opts).Attributes()
	outcome, _ := set.Value("outcome")
	c.counts[outcome.AsString()] += n
}

// client is a store without a connection.
type client struct {
	sessionv1.StorageServiceClient
	extendFn func(*sessionv1.BatchExtendTTLRequest) *sessionv1.BatchExtendTTLResponse
}

func (c client) BatchExtendTTL(_ context.Context, r *sessionv1.BatchExtendTTLRequest, _ ...grpc.CallOption) (*sessionv1.BatchExtendTTLResponse, error) {
	return c.extendFn(r), nil
}

func (c client) BatchGetSessions(ctx context.Context, r *sessionv1.BatchGetSessionsRequest, _ ...grpc.CallOption) (*sessionv1.BatchGetSessionsResponse, error) {
	return everySession(ctx, r)
}

func TestNotFoundIsCountedOnce(t *testing.T) {
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	tr := tracker.New(tracker.Config{
		Rules: rules, Flush: time.Second, RetryDelay: time.Second, RecheckDelay: time.Second, MaxTracked: 10, ForgetAfter: time.Hour,
	})
	tel := telemetry.Nop()
	seen := countingProvider{counts: map[string]map[string]int64{}}
	tel.Meter = seen
	now := time.Now()
	missing := &movingStore{misses: 2}
	store := client{extendFn: func(r *sessionv1.BatchExtendTTLRequest) *sessionv1.BatchExtendTTLResponse {
		out, _ := missing.extend(t.Context(), r)
		return out
	}}
	c, err := New(Config{CallTimeout: time.Second, Now: func() time.Time { return now }}, store, tr, tel)
	if err != nil {
		t.Fatal(err)
	}
	f := newFeed()
	for _, id := range []string{"moving", "other"} {
		f.add(id, "input:text")
	}
	tr.Observe(f.entries, c.nowMillis())
	c.ask(t.Context(), tr.Unresolved(c.nowMillis(), 10))
	for _, want := range []map[string]int64{
		{"RETRY": 1, "NOT_NEEDED": 1},
		{"RETRY": 1, "NOT_NEEDED": 1, "NOT_FOUND": 1},
	} {
		c.report(t.Context(), tr.Due(c.nowMillis(), 10, true))
		if got := seen.counts["stoker.activity.extend.items"]; !maps.Equal(got, want) {
			t.Errorf("counted %v, want %v", got, want)
		}
		now = now.Add(time.Second)
	}
	if tr.Busy() || tr.Tracked("moving") {
		t.Errorf("busy %v, tracked %v", tr.Busy(), tr.Tracked("moving"))
	}
}
