package consumer

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore is a StorageService whose calls are functions.
type fakeStore struct {
	sessionv1.UnimplementedStorageServiceServer

	FeedFn   func(stream grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error
	GetFn    func(ctx context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error)
	ExtendFn func(ctx context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error)
}

func (f *fakeStore) Feed(s grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error {
	return f.FeedFn(s)
}

func (f *fakeStore) BatchGetSessions(ctx context.Context, r *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
	return f.GetFn(ctx, r)
}

func (f *fakeStore) BatchExtendTTL(ctx context.Context, r *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
	return f.ExtendFn(ctx, r)
}

// feed is a store's feed of one shard: it delivers what is not acknowledged
// within the credits, again from the start to each new stream.
type feed struct {
	mu      sync.Mutex
	changed chan struct{}
	entries []*sessionv1.FeedEntry
	acked   int // entries before this are done
	streams int
	broken  error
	most    int // the most entries that were ever delivered and not acknowledged
}

func newFeed() *feed { return &feed{changed: make(chan struct{})} }

func (f *feed) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed) add(id, typ string) {
	f.update(func() {
		n, now := len(f.entries)+1, timestamppb.Now()
		f.entries = append(f.entries, &sessionv1.FeedEntry{
			Shard: 3, Cursor: fmt.Sprintf("7-%d", n), SessionId: id, AppendTime: now,
			Event: &sessionv1.Event{Id: fmt.Sprintf("e%d", n), Type: typ, Time: now, Origin: sessionv1.Event_USER, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		})
	})
}

// breakStreams ends every stream that is open with an error.
func (f *feed) breakStreams(err error) { f.update(func() { f.broken = err; f.streams++ }) }

func (f *feed) state() (acked, entries, streams int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.acked, len(f.entries), f.streams
}

func (f *feed) serve(s grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error {
	requests, failed := make(chan *sessionv1.FeedRequest), make(chan error, 1)
	go func() {
		for {
			r, err := s.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	var mine int
	f.update(func() { f.streams++; mine = f.streams })
	if err := s.Send(&sessionv1.FeedResponse{Assignment: true, Shards: []int32{3}}); err != nil {
		return err
	}
	credits := 0
	next := -1
	for {
		f.mu.Lock()
		if f.streams != mine {
			err := f.broken
			f.mu.Unlock()
			return err
		}
		if next < 0 {
			next = f.acked
		}
		n := min(credits, len(f.entries)-next, 100)
		batch := f.entries[next : next+n]
		changed := f.changed
		f.most = max(f.most, next+n-f.acked)
		f.mu.Unlock()
		if n > 0 {
			next, credits = next+n, credits-n
			if err := s.Send(&sessionv1.FeedResponse{Entries: batch}); err != nil {
				return err
			}
		}
		var ready <-chan struct{}
		if n > 0 {
			ready = closed
		}
		select {
		case <-failed:
			return nil
		case r := <-requests:
			credits += int(r.GetCredits())
			for _, a := range r.GetAcks() {
				var n int
				if _, err := fmt.Sscanf(a.GetCursor(), "7-%d", &n); err == nil {
					f.update(func() { f.acked = max(f.acked, n) })
				}
			}
		case <-changed:
		case <-ready:
		}
	}
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// reports records what BatchExtendTTL was given.
type reports struct {
	mu    sync.Mutex
	calls int
	items []*sessionv1.ExtendTTLRequest
}

func (r *reports) take(req *sessionv1.BatchExtendTTLRequest) *sessionv1.BatchExtendTTLResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	r.items = append(r.items, req.GetItems()...)
	out := &sessionv1.BatchExtendTTLResponse{}
	for _, it := range req.GetItems() {
		out.Results = append(out.Results, &sessionv1.BatchExtendTTLResponse_Result{Id: it.GetId(), Answer: &sessionv1.BatchExtendTTLResponse_Result_Response{
			Response: &sessionv1.ExtendTTLResponse{Outcome: sessionv1.ExtendTTLResponse_NOT_NEEDED, Reason: "enough left"},
		}})
	}
	return out
}

func (r *reports) count() (calls, items int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls, len(r.items)
}

func (r *reports) last(id string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var at time.Time
	for _, it := range r.items {
		if t := it.GetActivityTime().AsTime(); it.GetId() == id && t.After(at) {
			at = t
		}
	}
	return at
}

func everySession(_ context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
	out := &sessionv1.BatchGetSessionsResponse{}
	now := time.Now()
	for _, id := range req.GetIds() {
		out.Results = append(out.Results, &sessionv1.BatchGetSessionsResponse_Result{Id: id, Answer: &sessionv1.BatchGetSessionsResponse_Result_Session{Session: &sessionv1.Session{
			Id: id, CreateTime: timestamppb.New(now), LastActivityTime: timestamppb.New(now.Add(-time.Hour)),
			ExpireTime: timestamppb.New(now.Add(24 * time.Hour)), CapTime: timestamppb.New(now.Add(48 * time.Hour)),
			TtlPolicy: &sessionv1.TTLPolicy{MaxExtensions: proto.Int32(4), ExtendBelow: durationpb.New(10 * time.Minute), Strategy: sessionv1.TTLPolicy_BELOW_THRESHOLD},
		}}})
	}
	return out, nil
}

// rig is a running consumer on a fake store.
type rig struct {
	*Consumer
	feed    *feed
	reports *reports
	stop    func() error
}

func start(t *testing.T, store *fakeStore, change ...func(*Config, *tracker.Config)) *rig {
	t.Helper()
	r := &rig{feed: newFeed(), reports: &reports{}}
	if store.FeedFn == nil {
		store.FeedFn = r.feed.serve
	}
	if store.GetFn == nil {
		store.GetFn = everySession
	}
	if store.ExtendFn == nil {
		store.ExtendFn = func(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
			return r.reports.take(req), nil
		}
	}
	pipe := rpc.NewPipe()
	srv := grpc.NewServer()
	sessionv1.RegisterStorageServiceServer(srv, store)
	served := make(chan error, 1)
	go func(l net.Listener) { served <- srv.Serve(l) }(pipe.Listener())
	tel := telemetry.Nop()
	conn, err := rpc.Dial(rpc.PipeTarget, tel, pipe.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Group: "activity", Name: "test", Window: 1000, Batch: 1000, Parallel: 4, CallTimeout: 2 * time.Second, Grace: 5 * time.Second,
		BackoffMin: 2 * time.Millisecond, BackoffMax: 20 * time.Millisecond, SweepEvery: time.Minute, Now: time.Now,
	}
	tcfg := tracker.Config{
		Rules: rules, Flush: 100 * time.Millisecond, RetryDelay: 5 * time.Millisecond, RecheckDelay: 20 * time.Millisecond,
		MaxTracked: 1000, ForgetAfter: time.Hour,
	}
	for _, c := range change {
		c(&cfg, &tcfg)
	}
	r.Consumer, err = New(cfg, sessionv1.NewStorageServiceClient(conn), tracker.New(tcfg), tel)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ran
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		conn.Close()
		srv.Stop()
		<-served
	})
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *rig) allAcked() bool {
	acked, entries, _ := r.feed.state()
	return acked == entries
}
