package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// fakeStore is a store whose calls are functions; others are not made.
type fakeStore struct {
	sessionv1.StorageServiceClient

	ExplainFn func(id string) (*sessionv1.TTLExplanation, error)
	EventsFn  func(id string) (*sessionv1.ListEventsResponse, error)
	ListFn    func(req *sessionv1.ListSessionsRequest) (*sessionv1.ListSessionsResponse, error)
}

func (f fakeStore) ExplainTTL(_ context.Context, r *sessionv1.ExplainTTLRequest, _ ...grpc.CallOption) (*sessionv1.TTLExplanation, error) {
	return f.ExplainFn(r.GetId())
}

func (f fakeStore) ListEvents(_ context.Context, r *sessionv1.ListEventsRequest, _ ...grpc.CallOption) (*sessionv1.ListEventsResponse, error) {
	return f.EventsFn(r.GetId())
}

func (f fakeStore) ListSessions(_ context.Context, r *sessionv1.ListSessionsRequest, _ ...grpc.CallOption) (*sessionv1.ListSessionsResponse, error) {
	return f.ListFn(r)
}

var now = time.UnixMilli(1_700_000_000_000).UTC()

func newServer(t *testing.T, store fakeStore) (*Server, *tracker.Tracker) {
	t.Helper()
	rules, err := policy.Compile(policy.DefaultRules())
	if err != nil {
		t.Fatal(err)
	}
	tr := tracker.New(tracker.Config{Rules: rules, Flush: time.Second, RetryDelay: time.Second, RecheckDelay: time.Second, MaxTracked: 10, ForgetAfter: time.Hour})
	return New(store, tr, rules, func() time.Time { return now }), tr
}

// kept is what the store says of a session.
func kept(string) (*sessionv1.TTLExplanation, error) {
	return &sessionv1.TTLExplanation{
		Ttl:              &sessionv1.TTL{LastActivityTime: timestamppb.New(now.Add(-time.Minute)), Policy: &sessionv1.TTLPolicy{}},
		LastActivityKind: "chat", Counts: map[string]int64{"chat": 3},
		Decisions: []*sessionv1.Decision{
			{Time: timestamppb.New(now.Add(-time.Minute)), Reason: "the later"}, {Time: timestamppb.New(now.Add(-time.Hour)), Reason: "the earlier"},
		},
	}, nil
}

func events(types ...string) func(string) (*sessionv1.ListEventsResponse, error) {
	return func(string) (*sessionv1.ListEventsResponse, error) {
		out := &sessionv1.ListEventsResponse{}
		for i, typ := range types {
			out.Events = append(out.Events, &sessionv1.Event{
				Id: fmt.Sprint("e", i), Type: typ, Origin: sessionv1.Event_USER, Time: timestamppb.New(now.Add(time.Duration(i-len(types)) * 20 * time.Minute)),
			})
		}
		return out, nil
	}
}

// TestGetActivityIsTheSameOnEveryReplica: what it tells is kept with the
// session, and so is why events do not count.
func TestGetActivityIsTheSameOnEveryReplica(t *testing.T) {
	s, _ := newServer(t, fakeStore{ExplainFn: kept, EventsFn: events("registry:updated", "input:text", "registry:updated", "session:expiring", "file:changed")})
	got, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetLastActivityTime().AsTime().Equal(now.Add(-time.Minute)) || got.GetLastActivityKind() != "chat" || got.GetCounts()["chat"] != 3 || got.GetTtl() == nil {
		t.Errorf("got %v", got)
	}
	var reasons []string
	for _, d := range got.GetDecisions() {
		reasons = append(reasons, fmt.Sprintf("%s x%d", d.GetReason(), d.GetCoalesced()))
	}
	want := []string{
		"the later x0", "not reported: file:changed is automated by the activity rules x1", "the earlier x0",
		"not reported: registry:updated is automated by the activity rules x2",
	}
	if !slices.Equal(reasons, want) {
		t.Errorf("got  %q\nwant %q", reasons, want)
	}
}

func TestGetActivityAddsWhatWaitsHere(t *testing.T) {
	s, tr := newServer(t, fakeStore{ExplainFn: kept, EventsFn: events()})
	tr.Observe([]*sessionv1.FeedEntry{{
		Cursor: "1-1", SessionId: "a", AppendTime: timestamppb.New(now),
		Event: &sessionv1.Event{Id: "e1", Type: "input:text", Origin: sessionv1.Event_USER, Time: timestamppb.New(now)},
	}}, now.UnixMilli())
	tr.Resolve([]tracker.Answer{{SessionID: tr.Unresolved(now.UnixMilli(), 1)[0], Session: &sessionv1.Session{
		CreateTime: timestamppb.New(now.Add(-time.Hour)), ExpireTime: timestamppb.New(now.Add(time.Hour)),
	}}}, now.UnixMilli(), now.UnixMilli())
	got, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetLastActivityTime().AsTime().Equal(now) || got.GetLastActivityKind() != "input" || got.GetCounts()["input"] != 1 || got.GetCounts()["chat"] != 3 {
		t.Errorf("got %v", got)
	}
}

func TestGetActivityPassesTheStoresErrorsOn(t *testing.T) {
	refuse := func(c codes.Code) func(string) (*sessionv1.TTLExplanation, error) {
		return func(string) (*sessionv1.TTLExplanation, error) { return nil, status.Error(c, "id") }
	}
	for _, want := range []codes.Code{codes.NotFound, codes.InvalidArgument, codes.Unavailable} {
		s, _ := newServer(t, fakeStore{ExplainFn: refuse(want)})
		if _, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "a"}); status.Code(err) != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	s, _ := newServer(t, fakeStore{ExplainFn: kept, EventsFn: func(string) (*sessionv1.ListEventsResponse, error) {
		return nil, status.Error(codes.Unavailable, "no log")
	}})
	if _, err := s.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "a"}); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
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
	s, _ := newServer(t, pages(100, &calls))
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
	s, _ := newServer(t, pages(10_000, &calls))
	got, err := s.ListInactiveSessions(t.Context(), &activityv1.ListInactiveSessionsRequest{Threshold: durationpb.New(24 * time.Hour), PageSize: 10})
	if err != nil || len(got.GetSessions()) != 0 || got.GetNextPageToken() == "" || calls != maxStorePages {
		t.Errorf("%d sessions, token %q, %d calls, %v", len(got.GetSessions()), got.GetNextPageToken(), calls, err)
	}
	if _, err := s.ListInactiveSessions(t.Context(), &activityv1.ListInactiveSessionsRequest{PageToken: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad token: %v", err)
	}
}
