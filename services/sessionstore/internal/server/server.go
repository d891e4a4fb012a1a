// Package server is the session store's gRPC surface: each handler checks what
// the protos cannot say, calls the store and returns.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Config is what the handlers need.
type Config struct {
	Store  storage.Store
	Shards int
	// Policy is the server's default, complete.
	Policy *sessionv1.TTLPolicy
	Limits Limits
	Clock  func() time.Time
	// PollInterval is what pollers are told to wait; Heartbeat is the longest
	// silence of a watch.
	PollInterval time.Duration
	Heartbeat    time.Duration
	Metrics      *Metrics
	// Stopping ends when the server is about to stop: streams and waits end.
	Stopping context.Context //nolint:containedctx // it is the server's, not a call's
}

// Server serves StorageService.
type Server struct {
	sessionv1.UnimplementedStorageServiceServer
	cfg Config
}

// New returns the service.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

const (
	defaultPage   = 50
	defaultEvents = 100
	defaultTail   = 10
)

// reach returns a session if the caller may reach it. A session of somebody
// else is not found.
func (s *Server) reach(ctx context.Context, id string) (*sessionv1.Session, error) {
	if err := rpc.Invalid(checkID("id", id, s.cfg.Shards)...); err != nil {
		return nil, err
	}
	sess, err := s.cfg.Store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if !auth.FromContext(ctx).Owns(sess.GetProject(), sess.GetUser()) {
		return nil, storage.ErrNotFound
	}
	return sess, nil
}

// may says whether the caller may reach a session, without reading it where
// the caller may reach all.
func (s *Server) may(ctx context.Context, id string) error {
	if p := auth.FromContext(ctx); p.Anonymous || p.Service {
		return rpc.Invalid(checkID("id", id, s.cfg.Shards)...)
	}
	_, err := s.reach(ctx, id)
	return err
}

// CreateSession starts a session.
func (s *Server) CreateSession(ctx context.Context, req *sessionv1.CreateSessionRequest) (*sessionv1.Session, error) {
	if !auth.FromContext(ctx).Owns(req.GetProject(), req.GetUser()) {
		return nil, rpc.Error(codes.PermissionDenied, "NOT_YOURS", "user, project: not the caller's own", nil, 0)
	}
	policy, bad, err := s.effective(ctx, "ttlPolicy", req.GetProject(), req.GetTtlPolicy())
	if err != nil {
		return nil, err
	}
	bad = append(bad, checkLabels("labels", req.GetLabels(), s.cfg.Limits)...)
	bad = append(bad, checkData("data", req.GetData(), s.cfg.Limits.SessionData)...)
	if err := rpc.Invalid(bad...); err != nil {
		return nil, err
	}
	sess, existed, err := s.cfg.Store.Create(ctx, s.fresh(req, policy), req.GetRequestId())
	if err == nil && !existed {
		s.cfg.Metrics.created(ctx)
	}
	return sess, err
}

// effective resolves and checks the policy of a new session.
func (s *Server) effective(ctx context.Context, field, project string, own *sessionv1.TTLPolicy) (*sessionv1.TTLPolicy, []rpc.Violation, error) {
	var projects *sessionv1.TTLPolicy
	if project != "" {
		p, err := s.cfg.Store.GetPolicy(ctx, project)
		if complete := errors.Is(err, storage.ErrUnavailable) && lifetime.Complete(own); err != nil && !complete && !errors.Is(err, storage.ErrNotFound) {
			return nil, nil, err
		}
		projects = p.GetPolicy()
	}
	policy := lifetime.Resolve(own, projects, s.cfg.Policy)
	return policy, checkPolicy(field, policy), nil
}

func (s *Server) fresh(req *sessionv1.CreateSessionRequest, policy *sessionv1.TTLPolicy) *sessionv1.Session {
	now := s.cfg.Clock().UnixMilli()
	shard := sessionid.ShardOf(req.GetProject(), req.GetUser(), req.GetRequestId(), s.cfg.Shards)
	return &sessionv1.Session{
		Id: sessionid.New(shard), User: req.GetUser(), Project: req.GetProject(),
		Labels: req.GetLabels(), Data: req.GetData(), Revision: 1,
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
		ExpireTime: lifetime.Time(lifetime.Deadline(now, policy)),
		CapTime:    lifetime.Time(lifetime.NewTerms(now, policy).Cap),
		TtlPolicy:  policy,
	}
}

// GetSession returns a session.
func (s *Server) GetSession(ctx context.Context, req *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
	return s.reach(ctx, req.GetId())
}

// BatchGetSessions answers per id.
func (s *Server) BatchGetSessions(ctx context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
	found, err := s.cfg.Store.GetMany(ctx, req.GetIds())
	if err != nil {
		return nil, err
	}
	out := &sessionv1.BatchGetSessionsResponse{}
	for i, id := range req.GetIds() {
		r := &sessionv1.BatchGetSessionsResponse_Result{Id: id}
		err := found[i].Err
		if bad := checkID("ids", id, s.cfg.Shards); bad != nil {
			err = rpc.Invalid(bad...)
		} else if err == nil && !auth.FromContext(ctx).Owns(found[i].Session.GetProject(), found[i].Session.GetUser()) {
			err = storage.ErrNotFound
		}
		if err != nil {
			r.Answer = &sessionv1.BatchGetSessionsResponse_Result_Error{Error: itemError(err)}
		} else {
			r.Answer = &sessionv1.BatchGetSessionsResponse_Result_Session{Session: found[i].Session}
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}

// itemError is the status of one item of a batch.
func itemError(err error) *status.Status {
	if mapped := ToStatus(err); mapped != nil {
		err = mapped
	}
	st := grpcstatus.Convert(err)
	if st.Code() == codes.Unknown {
		st = grpcstatus.New(codes.Internal, "internal error")
	}
	return st.Proto()
}

// UpdateSession changes labels or data.
func (s *Server) UpdateSession(ctx context.Context, req *sessionv1.UpdateSessionRequest) (*sessionv1.Session, error) {
	if err := s.may(ctx, req.GetId()); err != nil {
		return nil, err
	}
	u, bad := parseUpdate(req, s.cfg.Limits)
	if err := rpc.Invalid(bad...); err != nil {
		return nil, err
	}
	return s.cfg.Store.Update(ctx, req.GetId(), u)
}

// EndSession ends a session.
func (s *Server) EndSession(ctx context.Context, req *sessionv1.EndSessionRequest) (*sessionv1.Session, error) {
	if err := s.may(ctx, req.GetId()); err != nil {
		return nil, err
	}
	return s.cfg.Store.End(ctx, req.GetId(), req.GetReason())
}

// DeleteSession removes a session.
func (s *Server) DeleteSession(ctx context.Context, req *sessionv1.DeleteSessionRequest) (*emptypb.Empty, error) {
	if err := s.may(ctx, req.GetId()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.cfg.Store.Delete(ctx, req.GetId())
}

func page(size int32) int {
	if size == 0 {
		return defaultPage
	}
	return int(size)
}

// own narrows a query of an end user to what is theirs.
func own(ctx context.Context, q storage.ListQuery) storage.ListQuery {
	if p := auth.FromContext(ctx); !p.Anonymous && !p.Service {
		q.User, q.Project = p.User, p.Project
	}
	return q
}

// ListSessions pages through sessions.
func (s *Server) ListSessions(ctx context.Context, req *sessionv1.ListSessionsRequest) (*sessionv1.ListSessionsResponse, error) {
	p, err := s.cfg.Store.List(ctx, own(ctx, storage.ListQuery{
		User: req.GetUser(), Project: req.GetProject(), Phase: req.GetPhase(),
		Limit: page(req.GetPageSize()), Token: req.GetPageToken(),
	}))
	if err != nil {
		return nil, err
	}
	return &sessionv1.ListSessionsResponse{Sessions: p.Sessions, NextPageToken: p.Next}, nil
}

// ListActiveUsers pages through the users with live sessions.
func (s *Server) ListActiveUsers(ctx context.Context, req *sessionv1.ListActiveUsersRequest) (*sessionv1.ListActiveUsersResponse, error) {
	if p := auth.FromContext(ctx); !p.Anonymous && !p.Service {
		return nil, rpc.Error(codes.PermissionDenied, "NOT_YOURS", "only services and operators may list users", nil, 0)
	}
	p, err := s.cfg.Store.ActiveUsers(ctx, storage.ListQuery{Project: req.GetProject(), Limit: page(req.GetPageSize()), Token: req.GetPageToken()})
	if err != nil {
		return nil, err
	}
	return &sessionv1.ListActiveUsersResponse{Users: p.Users, NextPageToken: p.Next}, nil
}

// RevokeUserSessions ends all live sessions of a user in a project.
func (s *Server) RevokeUserSessions(ctx context.Context, req *sessionv1.RevokeUserSessionsRequest) (*sessionv1.RevokeUserSessionsResponse, error) {
	if !auth.FromContext(ctx).Owns(req.GetProject(), req.GetUser()) {
		return nil, rpc.Error(codes.PermissionDenied, "NOT_YOURS", "user, project: not the caller's own", nil, 0)
	}
	reason := req.GetReason()
	if reason == "" {
		reason = "revoked"
	}
	n, err := s.cfg.Store.RevokeUser(ctx, req.GetProject(), req.GetUser(), req.GetExcept(), reason)
	return &sessionv1.RevokeUserSessionsResponse{Count: int32(n)}, err
}

// GetTTL returns a session's deadline.
func (s *Server) GetTTL(ctx context.Context, req *sessionv1.GetTTLRequest) (*sessionv1.TTL, error) {
	sess, err := s.reach(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return lifetime.TTLOf(sess, s.cfg.Clock().UnixMilli()), nil
}

// AppendEvents appends events to a session's log.
func (s *Server) AppendEvents(ctx context.Context, req *sessionv1.AppendEventsRequest) (*sessionv1.AppendEventsResponse, error) {
	if err := s.may(ctx, req.GetId()); err != nil {
		return nil, err
	}
	if err := rpc.Invalid(checkEvents(req.GetEvents(), s.cfg.Limits)...); err != nil {
		return nil, err
	}
	cursors, err := s.cfg.Store.Append(ctx, req.GetId(), s.stamp(ctx, req.GetEvents()))
	if err != nil {
		return nil, err
	}
	s.cfg.Metrics.appended(ctx, len(cursors))
	return &sessionv1.AppendEventsResponse{Cursors: cursors}, nil
}

// stamp completes events: who they come from is the server's to say, whatever
// they claim.
func (s *Server) stamp(ctx context.Context, events []*sessionv1.Event) []*sessionv1.Event {
	now := s.cfg.Clock()
	origin := sessionv1.Event_USER
	if auth.FromContext(ctx).Service {
		origin = sessionv1.Event_SYSTEM
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	stamped := timestamppb.New(now.Truncate(time.Millisecond)) // nobody changes an event, so all may have the same
	var ids randomIDs
	out := make([]*sessionv1.Event, len(events))
	for i, e := range events {
		out[i] = storage.WithCursor(e, "")
		out[i].Origin = origin
		if e.GetId() == "" {
			out[i].Id = ids.next(len(events) - i)
		}
		if e.GetTime() == nil || e.GetTime().AsTime().After(now) {
			out[i].Time = stamped
		}
		if e.GetTraceparent() == "" {
			out[i].Traceparent = carrier["traceparent"]
		}
	}
	return out
}

// randomIDs makes ids many at a time: they are parts of one string.
type randomIDs struct{ left string }

const randomIDBytes = 16

// next returns an id; at most more will be asked for, this one included.
func (r *randomIDs) next(more int) string {
	if r.left == "" {
		b := make([]byte, more*randomIDBytes)
		_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
		r.left = hex.EncodeToString(b)
	}
	id := r.left[:2*randomIDBytes]
	r.left = r.left[len(id):]
	return id
}

// GetPolicy returns a project's policy.
func (s *Server) GetPolicy(ctx context.Context, req *sessionv1.GetPolicyRequest) (*sessionv1.ProjectPolicy, error) {
	p, err := s.cfg.Store.GetPolicy(ctx, req.GetProject())
	return p, policyError(err)
}

// SetPolicy sets a project's policy, checked together with the default that it
// leaves in force.
func (s *Server) SetPolicy(ctx context.Context, req *sessionv1.SetPolicyRequest) (*sessionv1.ProjectPolicy, error) {
	if err := rpc.Invalid(checkPolicy("policy", lifetime.Resolve(req.GetPolicy(), s.cfg.Policy))...); err != nil {
		return nil, err
	}
	policy, _ := proto.Clone(req.GetPolicy()).(*sessionv1.TTLPolicy)
	return s.cfg.Store.SetPolicy(ctx, req.GetProject(), policy)
}

// DeletePolicy returns a project to the default.
func (s *Server) DeletePolicy(ctx context.Context, req *sessionv1.DeletePolicyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, policyError(s.cfg.Store.DeletePolicy(ctx, req.GetProject()))
}

// ListPolicies pages through the projects that have a policy.
func (s *Server) ListPolicies(ctx context.Context, req *sessionv1.ListPoliciesRequest) (*sessionv1.ListPoliciesResponse, error) {
	p, err := s.cfg.Store.ListPolicies(ctx, page(req.GetPageSize()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	return &sessionv1.ListPoliciesResponse{Policies: p.Policies, NextPageToken: p.Next}, nil
}

// pollAfter is what a poller is told: at once when there is more.
func (s *Server) pollAfter(more bool) *durationpb.Duration {
	if more {
		return durationpb.New(0)
	}
	return durationpb.New(s.cfg.PollInterval)
}
