package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/explain"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// fakeStore is a store whose calls are functions; others are not made.
type fakeStore struct {
	sessionv1.StorageServiceClient

	GetFn  func(id string) (*sessionv1.Session, error)
	ListFn func(req *sessionv1.ListSessionsRequest) (*sessionv1.ListSessionsResponse, error)
}

func (f fakeStore) GetSession(_ context.Context, r *sessionv1.GetSessionRequest, _ ...grpc.CallOption) (*sessionv1.Session, error) {
	return f.GetFn(r.GetId())
}

func (f fakeStore) ListSessions(_ context.Context, r *sessionv1.ListSessionsRequest, _ ...grpc.CallOption) (*sessionv1.ListSessionsResponse, error) {
	return f.ListFn(r)
}

var now = time.UnixMilli(1_700_000_000_000).UTC()

func newServer(t *testing.T, store fakeStore) (*Server, *tracker.Tracker, *explain.Log) {
	t.Helper()
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	log := explain.NewLog(10)
	tr := tracker.New(tracker.Config{Rules: rules, Flush: time.Second, RetryDelay: time.Second, MaxTracked: 10, ForgetAfter: time.Hour, Decisions: log})
	return New(store, tr, log, func() time.Time { return now }), tr, log
}

func TestGetActivityOfATrackedSession(t *testing.T) {
	s, tr, _ := newServer(t, fakeStore{})
	tr.Observe([]*sessionv1.FeedEntry{{
		Cursor: "1-1", SessionId: "a", AppendTime: timestamppb.New(now),
		Event: &sessionv1.Event{Id: "e1", Type: "input:text", Origin: sessionv1.Event_USER, Time: timestamppb.New(now)},
	}}, now.UnixMilli())
	tr.Resolve([]tracker.Answer{{SessionID: tr.Unresolved(now.UnixMilli(), 1)[0], Session: &sessionv1.Session{
		CreateTime: timestamppb.New(now.Add(-time.Hour)), ExpireTime: timestamppb.New(now.Add(time.Hour)),
	}}}, now.UnixMilli())
	items := tr.Due(now.UnixMilli(), 1, true).Items
	tr.Applied(items, []tracker.Result{{Outcome: sessionv1.ExtendTTLResponse_NOT_NEEDED, Reason: "enough left"}}, now.UnixMilli())

	got, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetLastActivityTime().AsTime().Equal(now) || got.GetLastActivityKind() != "input" || got.GetCounts()["input"] != 1 {
		t.Errorf("got %v", got)
	}
	d := got.GetDecisions()
	if len(d) != 1 || d[0].GetOutcome() != sessionv1.ExtendTTLResponse_NOT_NEEDED || d[0].GetReason() != "enough left" ||
		d[0].GetEventId() != "e1" || d[0].GetActivityKind() != "input" || d[0].GetCoalesced() != 1 {
		t.Errorf("decisions %v", d)
	}
}

func TestGetActivityOfAnUntrackedSessionAsksTheStore(t *testing.T) {
	s, _, log := newServer(t, fakeStore{GetFn: func(id string) (*sessionv1.Session, error) {
		switch id {
		case "known":
			return &sessionv1.Session{Id: id, LastActivityTime: timestamppb.New(now)}, nil
		case "bad":
			return nil, status.Error(codes.InvalidArgument, "id: malformed")
		default:
			return nil, status.Error(codes.NotFound, "no such session")
		}
	}})
	log.Add("known", explain.Decision{Reason: "before it was forgotten"})
	got, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "known"})
	if err != nil || !got.GetLastActivityTime().AsTime().Equal(now) || got.GetLastActivityKind() != "" || len(got.GetDecisions()) != 1 {
		t.Errorf("got %v %v", got, err)
	}
	for id, want := range map[string]codes.Code{"bad": codes.InvalidArgument, "unknown": codes.NotFound} {
		if _, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: id}); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", id, err, want)
		}
	}
}

// pages is a store of sessions of which every third was inactive for long.
func pages(sessions int, calls *int) fakeStore {
	return fakeStore{ListFn: func(r *sessionv1.ListSessionsRequest) (*sessionv1.ListSessionsResponse, error) {
		*calls++
		from := 0
		if r.GetPageToken() != "" {
			if _, err := fmt.Sscan(r.GetPageToken(), &from); err != nil {
				return nil, status.Error(codes.InvalidArgument, "pageToken: malformed")
			}
		}
		out := &sessionv1.ListSessionsResponse{}
		to := min(sessions, from+int(r.GetPageSize()))
		for i := from; i < to; i++ {
			idle := time.Minute
			if i%3 == 0 {
				idle = time.Hour
			}
			out.Sessions = append(out.Sessions, &sessionv1.Session{Id: fmt.Sprint(i), Project: r.GetProject(), LastActivityTime: timestamppb.New(now.Add(-idle))})
		}
		if to < sessions {
			out.NextPageToken = fmt.Sprint(to)
		}
		return out, nil
	}}
}

func TestListInactiveSessionsPages(t *testing.T) {
	calls := 0
	s, _, _ := newServer(t, pages(100, &calls))
	seen := map[string]bool{}
	token := ""
	for range 100 {
		got, err := s.ListInactiveSessions(t.Context(), &activityv1.ListInactiveSessionsRequest{Project: "p", PageSize: 7, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.GetSessions()) > 7 {
			t.Fatalf("a page of %d", len(got.GetSessions()))
		}
		for _, one := range got.GetSessions() {
			if seen[one.GetSessionId()] || one.GetProject() != "p" || one.GetInactiveFor().AsDuration() != time.Hour {
				t.Errorf("got %v", one)
			}
			seen[one.GetSessionId()] = true
		}
		if token = got.GetNextPageToken(); token == "" {
			break
		}
	}
	if len(seen) != 34 {
		t.Errorf("%d inactive sessions, want 34", len(seen))
	}
}

func TestListInactiveSessionsIsBounded(t *testing.T) {
	calls := 0
	s, _, _ := newServer(t, pages(10_000, &calls))
	got, err := s.ListInactiveSessions(t.Context(), &activityv1.ListInactiveSessionsRequest{Threshold: durationpb.New(24 * time.Hour), PageSize: 10})
	if err != nil || len(got.GetSessions()) != 0 || got.GetNextPageToken() == "" || calls != maxStorePages {
		t.Errorf("%d sessions, token %q, %d calls, %v", len(got.GetSessions()), got.GetNextPageToken(), calls, err)
	}
	if _, err := s.ListInactiveSessions(t.Context(), &activityv1.ListInactiveSessionsRequest{PageToken: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad token: %v", err)
	}
}
