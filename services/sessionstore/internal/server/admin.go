package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Admin serves AdminService. This version has no breakers and no journal:
// their lists are empty, and there is none to be found.
type Admin struct {
	sessionv1.UnimplementedAdminServiceServer
	store   storage.Store
	started time.Time
}

// NewAdmin returns the service.
func NewAdmin(store storage.Store, started time.Time) *Admin {
	return &Admin{store: store, started: started}
}

// ListBreakers lists the breakers.
func (a *Admin) ListBreakers(context.Context, *sessionv1.ListBreakersRequest) (*sessionv1.ListBreakersResponse, error) {
	return &sessionv1.ListBreakersResponse{}, nil
}

// SetBreaker forces a breaker's state.
func (a *Admin) SetBreaker(_ context.Context, req *sessionv1.SetBreakerRequest) (*sessionv1.Breaker, error) {
	return nil, rpc.Error(codes.NotFound, rpc.ReasonNotFound, "name: there is no breaker \""+rpc.Shorten(req.GetName())+"\"", nil, 0)
}

// GetStoreStatus tells how the store is doing.
func (a *Admin) GetStoreStatus(ctx context.Context, _ *sessionv1.GetStoreStatusRequest) (*sessionv1.StoreStatus, error) {
	st := a.store.Status(ctx)
	return &sessionv1.StoreStatus{
		Backend: st.Backend, Shards: int32(st.Shards), Reachable: st.Err == nil, Durable: st.Durable,
		StartTime: timestamppb.New(a.started),
	}, nil
}

// ListDeadLetters lists journaled writes that could not be replayed.
func (a *Admin) ListDeadLetters(context.Context, *sessionv1.ListDeadLettersRequest) (*sessionv1.ListDeadLettersResponse, error) {
	return &sessionv1.ListDeadLettersResponse{}, nil
}

// RetryDeadLetter replays one of them.
func (a *Admin) RetryDeadLetter(_ context.Context, req *sessionv1.RetryDeadLetterRequest) (*sessionv1.RetryDeadLetterResponse, error) {
	return nil, rpc.Error(codes.NotFound, rpc.ReasonNotFound, "id: there is no dead letter \""+rpc.Shorten(req.GetId())+"\"", nil, 0)
}
