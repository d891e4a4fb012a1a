// Package server answers questions about activity.
package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/explain"
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

	store     sessionv1.StorageServiceClient
	tracker   *tracker.Tracker
	decisions *explain.Log
	now       func() time.Time
}

// New returns a server over what the tracker knows.
func New(store sessionv1.StorageServiceClient, tr *tracker.Tracker, decisions *explain.Log, now func() time.Time) *Server {
	return &Server{store: store, tracker: tr, decisions: decisions, now: now}
}

// GetActivity implements ActivityService. The store is asked about a session
// that is not tracked, and its errors are passed on.
func (s *Server) GetActivity(ctx context.Context, req *activityv1.GetActivityRequest) (*activityv1.Activity, error) {
	v, tracked := s.tracker.Lookup(req.GetId())
	out := &activityv1.Activity{
		SessionId: req.GetId(), LastActivityTime: timestamp(v.Last), LastActivityKind: v.Kind, Counts: v.Counts,
	}
	if !tracked {
		sess, err := s.store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: req.GetId()})
		if err != nil {
			return nil, err
		}
		out.LastActivityTime = sess.GetLastActivityTime()
	}
	out.Decisions = decisions(s.decisions.Last(req.GetId()))
	return out, nil
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

func decisions(from []explain.Decision) []*activityv1.Decision {
	out := make([]*activityv1.Decision, 0, len(from))
	for _, d := range from {
		out = append(out, &activityv1.Decision{
			Time: timestamp(d.Time), ActivityTime: timestamp(d.Activity), ActivityKind: d.Kind, EventId: d.EventID,
			Outcome: d.Outcome, Reason: d.Reason, Coalesced: d.Coalesced,
		})
	}
	return out
}

func timestamp(ms int64) *timestamppb.Timestamp {
	return timestamppb.New(time.UnixMilli(ms))
}
