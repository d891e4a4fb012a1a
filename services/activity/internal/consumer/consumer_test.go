package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

func TestReportsThenAcknowledges(t *testing.T) {
	r := start(t, &fakeStore{})
	for range 50 {
		r.feed.add("a", "input:text")
		r.feed.add("b", "registry:updated")
	}
	eventually(t, "everything acknowledged", r.allAcked)
	calls, items := r.reports.count()
	if calls < 1 || calls > 2 || items != calls {
		t.Errorf("%d calls with %d items, want one session reported in one call, two at most", calls, items)
	}
	if at := r.reports.last("b"); !at.IsZero() {
		t.Error("an automated event was reported")
	}
	if s := r.tracker.Stats(); s.Counted[3]+s.Counted[2] != 50 || s.Ignored != 50 {
		t.Errorf("stats %+v", s)
	}
}

func TestNothingIsAcknowledgedBeforeTheAnswer(t *testing.T) {
	release := make(chan struct{})
	var entered atomic.Bool
	var rep reports
	r := start(t, &fakeStore{ExtendFn: func(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
		entered.Store(true)
		<-release
		return rep.take(req), nil
	}})
	r.feed.add("a", "input:text")
	eventually(t, "the report is out", entered.Load)
	r.feed.add("b", "registry:updated")
	eventually(t, "the next entry is seen", func() bool { return r.tracker.Outstanding() == 2 })
	if acked, _, _ := r.feed.state(); acked != 0 {
		t.Errorf("acknowledged %d entries before the answer", acked)
	}
	close(release)
	eventually(t, "acknowledged", r.allAcked)
}

func TestBrokenStreamsLoseNothing(t *testing.T) {
	r := start(t, &fakeStore{})
	var last time.Time
	for i := range 20 {
		r.feed.add("a", "input:text")
		last = time.Now()
		if i%4 == 0 {
			eventually(t, "connected", r.Connected)
			r.feed.breakStreams(grpcstatus.Error(codes.Unavailable, "gone"))
		}
	}
	eventually(t, "everything acknowledged", r.allAcked)
	if got := r.reports.last("a"); got.Before(last.Add(-20 * time.Millisecond)) {
		t.Errorf("the last activity reported is of %s, sent at %s", got, last)
	}
	if _, _, streams := r.feed.state(); streams < 5 {
		t.Errorf("%d streams, too few to show anything", streams)
	}
	if s := r.tracker.Stats(); s.Counted[2] != 20 {
		t.Errorf("counted %v, want each of the 20 once", s.Counted)
	}
}

func TestKeepsTryingThroughAnOutage(t *testing.T) {
	var failures atomic.Int32
	fail := func() error {
		if failures.Add(1) <= 10 {
			return grpcstatus.Error(codes.Unavailable, "store down")
		}
		return nil
	}
	var rep reports
	r := start(t, &fakeStore{
		GetFn: func(ctx context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
			if failures.Load() < 5 {
				return nil, fail()
			}
			return everySession(ctx, req)
		},
		ExtendFn: func(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
			if err := fail(); err != nil {
				return nil, err
			}
			return rep.take(req), nil
		},
	})
	for i := range 10 {
		r.feed.add(fmt.Sprint("s", i), "input:text")
	}
	eventually(t, "everything acknowledged", r.allAcked)
	if calls, items := rep.count(); items != 10 || failures.Load() < 11 {
		t.Errorf("%d calls with %d items after %d failures", calls, items, failures.Load())
	}
}

func TestAnswersPerItem(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	r := start(t, &fakeStore{ExtendFn: func(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		out := &sessionv1.BatchExtendTTLResponse{}
		for _, it := range req.GetItems() {
			seen[it.GetId()]++
			res := &sessionv1.BatchExtendTTLResponse_Result{Id: it.GetId(), Answer: &sessionv1.BatchExtendTTLResponse_Result_Response{
				Response: &sessionv1.ExtendTTLResponse{Outcome: sessionv1.ExtendTTLResponse_NOT_NEEDED},
			}}
			refuse := func(c codes.Code) {
				res.Answer = &sessionv1.BatchExtendTTLResponse_Result_Error{Error: &status.Status{Code: int32(c)}}
			}
			switch {
			case it.GetId() == "flaky" && seen["flaky"] < 4:
				refuse(codes.Unavailable)
			case it.GetId() == "refused":
				refuse(codes.InvalidArgument)
			case it.GetId() == "unknown":
				res.Answer = &sessionv1.BatchExtendTTLResponse_Result_Response{Response: &sessionv1.ExtendTTLResponse{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND}}
			}
			out.Results = append(out.Results, res)
		}
		return out, nil
	}})
	for _, id := range []string{"fine", "flaky", "refused", "unknown"} {
		r.feed.add(id, "input:text")
	}
	eventually(t, "everything acknowledged", r.allAcked)
	mu.Lock()
	defer mu.Unlock()
	if seen["flaky"] != 4 || seen["fine"] != 1 || seen["refused"] != 1 || seen["unknown"] != 2 {
		t.Errorf("asked %v", seen)
	}
	if r.tracker.Tracked("unknown") {
		t.Error("a session that is not there is still tracked")
	}
}

// One item that the store's validation refuses must not hold up the others.
func TestHalvesABatchThatIsRefused(t *testing.T) {
	var rep reports
	r := start(t, &fakeStore{
		GetFn: func(ctx context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
			for _, id := range req.GetIds() {
				if id == "malformed" {
					return nil, grpcstatus.Error(codes.InvalidArgument, "ids")
				}
			}
			return everySession(ctx, req)
		},
		ExtendFn: func(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
			for _, it := range req.GetItems() {
				if it.GetId() == "poison" {
					return nil, grpcstatus.Error(codes.InvalidArgument, "items")
				}
			}
			return rep.take(req), nil
		},
	})
	for _, id := range []string{"a", "malformed", "b", "poison", "c"} {
		r.feed.add(id, "input:text")
	}
	eventually(t, "everything acknowledged", r.allAcked)
	if _, items := rep.count(); items != 3 {
		t.Errorf("%d items reported, want a, b and c", items)
	}
}

func TestLoadShrinksCoalescingAndKeepsToTheWindow(t *testing.T) {
	r := start(t, &fakeStore{}, func(c *Config, tc *tracker.Config) { c.Window, tc.Flush = 100, time.Hour })
	for i := range 5000 {
		r.feed.add(fmt.Sprint("s", i%10), "input:text")
	}
	eventually(t, "nearly everything acknowledged", func() bool {
		acked, entries, _ := r.feed.state()
		return acked >= entries-100
	})
	r.feed.mu.Lock()
	most := r.feed.most
	r.feed.mu.Unlock()
	if most > 100 {
		t.Errorf("%d entries were outstanding at once, the window is 100", most)
	}
}

func TestReportsWhatIsPendingAtTheEnd(t *testing.T) {
	r := start(t, &fakeStore{}, func(_ *Config, tc *tracker.Config) { tc.Flush = time.Hour })
	for i := range 20 {
		r.feed.add(fmt.Sprint("s", i), "input:text")
	}
	eventually(t, "all seen", func() bool { return r.tracker.Stats().Counted[2] == 20 })
	if calls, _ := r.reports.count(); calls != 0 {
		t.Fatalf("%d calls before the end", calls)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, items := r.reports.count(); items != 20 || !r.allAcked() {
		acked, _, _ := r.feed.state()
		t.Errorf("%d items reported, %d entries acknowledged at the end, want 20 each", items, acked)
	}
}

func TestEndIsBoundedByTheGrace(t *testing.T) {
	r := start(t, &fakeStore{ExtendFn: func(ctx context.Context, _ *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}, func(c *Config, _ *tracker.Config) { c.Grace, c.CallTimeout = 50*time.Millisecond, time.Second })
	r.feed.add("a", "input:text")
	eventually(t, "seen", func() bool { return r.tracker.Stats().Counted[2] == 1 })
	begin := time.Now()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("the end took %s", took)
	}
	if acked, _, _ := r.feed.state(); acked != 0 {
		t.Error("acknowledged without an answer")
	}
}

func TestConnectsForEver(t *testing.T) {
	var tries atomic.Int32
	f := newFeed()
	r := start(t, &fakeStore{FeedFn: func(s grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error {
		if tries.Add(1) < 20 {
			return grpcstatus.Error(codes.Unavailable, "not yet")
		}
		return f.serve(s)
	}})
	eventually(t, "connected", r.Connected)
	if n := tries.Load(); n < 20 {
		t.Errorf("%d tries", n)
	}
}

func TestEndWithoutAStore(t *testing.T) {
	r := start(t, &fakeStore{FeedFn: func(grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error {
		return errors.New("never")
	}})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}
