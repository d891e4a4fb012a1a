// Package server answers questions about activity.
package server

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

const (
	defaultThreshold = 30 * time.Minute
	defaultPageSize  = 50
	// maxStorePages bounds the pages of the store that one call looks at.
	maxStorePages = 20
)

// Server implements ActivityService.
type Server struct {
	activityv1.UnimplementedActivityServiceServer

	store   sessionv1.StorageServiceClient
	tracker *tracker.Tracker
	rules   *policy.Interner
	now     func() time.Time
}

// New returns a server over the store and what the tracker knows. rules are
// those of sessions whose policy has none.
func New(store sessionv1.StorageServiceClient, tr *tracker.Tracker, rules *policy.Rules, now func() time.Time) *Server {
	return &Server{store: store, tracker: tr, rules: policy.NewInterner(rules), now: now}
}

// GetActivity implements ActivityService. What is kept is with the session, so
// that every replica answers the same; added to it is the activity that waits
// here for its report, and why the latest events that do not count do not. The
// store's errors are passed on.
func (s *Server) GetActivity(ctx context.Context, req *activityv1.GetActivityRequest) (*activityv1.Activity, error) {
	kept, err := s.store.ExplainTTL(ctx, &sessionv1.ExplainTTLRequest{Id: req.GetId()})
	if err != nil {
		return nil, err
	}
	latest, err := s.store.ListEvents(ctx, &sessionv1.ListEventsRequest{Id: req.GetId()})
	if err != nil {
		return nil, err
	}
	out := &activityv1.Activity{
		SessionId: req.GetId(), Ttl: kept.GetTtl(), LastActivityTime: kept.GetTtl().GetLastActivityTime(),
		LastActivityKind: kept.GetLastActivityKind(), Counts: kept.GetCounts(),
	}
	if v, ok := s.tracker.Waiting(req.GetId()); ok {
		out.Counts = sum(out.GetCounts(), v.Counts)
		if at := timestamp(v.Last); at.AsTime().After(out.GetLastActivityTime().AsTime()) {
			out.LastActivityTime, out.LastActivityKind = at, v.Kind
		}
	}
	rules := s.rules.Terms(kept.GetTtl().GetPolicy()).Rules
	out.Decisions = merge(kept.GetDecisions(), notReported(latest.GetEvents(), rules))
	return out, nil
}

func sum(a, b map[string]int64) map[string]int64 {
	out := make(map[string]int64, len(a)+len(b))
	maps.Copy(out, a)
	for k, n := range b {
		out[k] += n
	}
	return out
}

// merge puts decisions in order, the latest first.
func merge(a, b []*sessionv1.Decision) []*sessionv1.Decision {
	out := slices.Concat(a, b)
	slices.SortStableFunc(out, func(a, b *sessionv1.Decision) int {
		return b.GetTime().AsTime().Compare(a.GetTime().AsTime())
	})
	return out
}

// notReported explains events that do not count, once for each type.
func notReported(events []*sessionv1.Event, rules *policy.Rules) []*sessionv1.Decision {
	var out []*sessionv1.Decision
	byReason := map[string]*sessionv1.Decision{}
	for _, e := range slices.Backward(events) {
		_, verdict := rules.Match(e.GetType(), e.GetOrigin())
		reason := ""
		switch verdict {
		case policy.Automated:
			reason = "not reported: " + e.GetType() + " is automated by the activity rules"
		case policy.System:
			reason = "not reported: " + e.GetType() + " came from an internal service"
		case policy.Unmatched:
			reason = "not reported: no activity rule matches " + e.GetType()
		case policy.Counts, policy.Lifecycle:
			continue
		}
		if d := byReason[reason]; d != nil {
			d.Coalesced++
			continue
		}
		d := &sessionv1.Decision{Time: e.GetTime(), ActivityTime: e.GetTime(), EventId: e.GetId(), Reason: reason, Coalesced: 1}
		byReason[reason] = d
		out = append(out, d)
	}
	return out
}

// ListInactiveSessions implements ActivityService. It reads on from a page of
// the store while it found too few, but never far: a page may be short.
func (s *Server) ListInactiveSessions(ctx context.Context, req *activityv1.ListInactiveSessionsRequest) (*activityv1.ListInactiveSessionsResponse, error) {
	threshold, size := defaultThreshold, int32(defaultPageSize)
	if req.GetThreshold() != nil {
		threshold = req.GetThreshold().AsDuration()
	}
	if req.GetPageSize() > 0 {
		size = req.GetPageSize()
	}
	out := &activityv1.ListInactiveSessionsResponse{NextPageToken: req.GetPageToken()}
	now := s.now()
	for page := 0; page == 0 || (page < maxStorePages && out.GetNextPageToken() != "" && len(out.GetSessions()) < int(size)); page++ {
		// Never more than there is room for, as a token can only point at the
		// end of a page of the store.
		got, err := s.store.ListSessions(ctx, &sessionv1.ListSessionsRequest{
			Project: req.GetProject(), PageSize: size - int32(len(out.GetSessions())), PageToken: out.GetNextPageToken(),
		})
		if err != nil {
			return nil, err
		}
		out.NextPageToken = got.GetNextPageToken()
		out.Sessions = append(out.Sessions, inactive(got.GetSessions(), now, threshold)...)
	}
	return out, nil
}

func inactive(sessions []*sessionv1.Session, now time.Time, threshold time.Duration) []*activityv1.InactiveSession {
	var out []*activityv1.InactiveSession
	for _, sess := range sessions {
		idle := now.Sub(sess.GetLastActivityTime().AsTime())
		if idle <= threshold {
			continue
		}
		out = append(out, &activityv1.InactiveSession{
			SessionId: sess.GetId(), User: sess.GetUser(), Project: sess.GetProject(),
			LastActivityTime: sess.GetLastActivityTime(), ExpireTime: sess.GetExpireTime(),
			InactiveFor: durationpb.New(idle.Truncate(time.Millisecond)),
		})
	}
	return out
}

func timestamp(ms int64) *timestamppb.Timestamp {
	return timestamppb.New(time.UnixMilli(ms))
}
