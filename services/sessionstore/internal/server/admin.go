package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/journal"
)

// Journal is the store's outage journal, for those who run it.
type Journal interface {
	Stats() journal.Stats
	DeadLetters(limit int, after string) (page []journal.DeadLetter, more bool)
	RetryDeadLetter(ctx context.Context, id string, drop bool) error
}

// Admin serves AdminService.
type Admin struct {
	sessionv1.UnimplementedAdminServiceServer
	// Journal is nil where there is none: no write waits then.
	Journal Journal
	// OnRepair is called with the outcome of each full repair; may be nil.
	OnRepair func(ctx context.Context, r storage.RepairResult, err error)
	store    storage.Store
	breakers *resilience.Registry
	started  time.Time
	// repairing is held while a repair runs.
	repairing sync.Mutex
}

// NewAdmin returns the service.
func NewAdmin(store storage.Store, breakers *resilience.Registry, started time.Time) *Admin {
	return &Admin{store: store, breakers: breakers, started: started}
}

// ListBreakers lists the breakers.
func (a *Admin) ListBreakers(context.Context, *sessionv1.ListBreakersRequest) (*sessionv1.ListBreakersResponse, error) {
	out := &sessionv1.ListBreakersResponse{}
	for _, s := range a.breakers.List() {
		out.Breakers = append(out.Breakers, breaker(s))
	}
	return out, nil
}

// states are the wire's names of states; what is not in it is OPEN.
var states = map[resilience.State]sessionv1.Breaker_State{
	resilience.Closed: sessionv1.Breaker_CLOSED, resilience.Open: sessionv1.Breaker_OPEN, resilience.HalfOpen: sessionv1.Breaker_HALF_OPEN,
}

func breaker(s resilience.Status) *sessionv1.Breaker {
	out := &sessionv1.Breaker{
		Name: s.Name, Class: s.Class, Node: s.Node, State: states[s.State], ProbeDue: s.ProbeDue, Failures: int32(s.Failures),
		TotalTrips: s.Trips, OpensAt: int32(s.OpensAt), ClosesAt: int32(s.ClosesAt), Forced: s.Forced,
	}
	if !s.LastFailure.IsZero() {
		out.LastFailureTime = timestamppb.New(s.LastFailure)
	}
	if s.State == resilience.Open && !s.Forced {
		out.ProbeAfter = durationpb.New(s.RetryAfter)
	}
	return out
}

// SetBreaker sets a breaker's state.
func (a *Admin) SetBreaker(_ context.Context, req *sessionv1.SetBreakerRequest) (*sessionv1.Breaker, error) {
	for state, name := range states {
		if name != req.GetState() {
			continue
		}
		s, err := a.breakers.Force(req.GetName(), state)
		if errors.Is(err, resilience.ErrNoBreaker) {
			return nil, rpc.Error(codes.NotFound, rpc.ReasonNotFound, "name: there is no breaker \""+rpc.Shorten(req.GetName())+"\"", nil, 0)
		}
		return breaker(s), err
	}
	return nil, rpc.FieldViolation("state", req.GetState().String(), "OPEN, CLOSED or HALF_OPEN")
}

// GetStoreStatus tells how the store is doing.
func (a *Admin) GetStoreStatus(ctx context.Context, _ *sessionv1.GetStoreStatusRequest) (*sessionv1.StoreStatus, error) {
	st := a.store.Status(ctx)
	out := &sessionv1.StoreStatus{
		Backend: st.Backend, Shards: int32(st.Shards), Reachable: st.Err == nil, Durable: st.Durable,
		Degraded: a.breakers.Degraded(), DataFormat: st.Format,
		StartTime: timestamppb.New(a.started),
	}
	if a.Journal != nil {
		j := a.Journal.Stats()
		out.JournalDepth, out.JournalDrained, out.DeadLetters, out.JournalBroken = j.Waiting, j.Drained, j.DeadLetters, j.Err != nil
		out.Degraded = out.GetDegraded() || j.Waiting > 0
	}
	if !st.LastLoss.IsZero() {
		out.DataLossTime = timestamppb.New(st.LastLoss)
		if st.LossSpan > 0 {
			out.DataLossSpan = durationpb.New(st.LossSpan)
		}
	}
	if st.ClockDifference != nil {
		out.ClockDifference = durationpb.New(*st.ClockDifference)
	}
	for _, w := range st.Warnings {
		out.Warnings = append(out.Warnings, &sessionv1.StoreWarning{Code: w.Code, Node: w.Node, Message: w.Message, Since: timestamppb.New(w.Since)})
	}
	return out, nil
}

// deadLetterPage is how many dead letters a page has where none is asked for.
const deadLetterPage = 100

// ListDeadLetters lists journaled writes that could not be replayed.
func (a *Admin) ListDeadLetters(_ context.Context, req *sessionv1.ListDeadLettersRequest) (*sessionv1.ListDeadLettersResponse, error) {
	out := &sessionv1.ListDeadLettersResponse{}
	if a.Journal == nil {
		return out, nil
	}
	limit := int(req.GetPageSize())
	if limit == 0 {
		limit = deadLetterPage
	}
	page, more := a.Journal.DeadLetters(limit, req.GetPageToken())
	for _, l := range page {
		out.DeadLetters = append(out.DeadLetters, &sessionv1.DeadLetter{
			Id: l.ID, SessionId: l.SessionID, Operation: l.Operation, Reason: l.Reason, AcceptTime: timestamppb.New(l.Accepted),
		})
	}
	if more {
		out.NextPageToken = page[len(page)-1].ID
	}
	return out, nil
}

// RetryDeadLetter replays one of them, or drops it.
func (a *Admin) RetryDeadLetter(ctx context.Context, req *sessionv1.RetryDeadLetterRequest) (*sessionv1.RetryDeadLetterResponse, error) {
	err := storage.ErrNotFound
	if a.Journal != nil {
		err = a.Journal.RetryDeadLetter(ctx, req.GetId(), req.GetDrop())
	}
	if errors.Is(err, storage.ErrNotFound) {
		return nil, rpc.Error(codes.NotFound, rpc.ReasonNotFound, "id: there is no dead letter \""+rpc.Shorten(req.GetId())+"\"", nil, 0)
	}
	if err != nil {
		return nil, err
	}
	return &sessionv1.RetryDeadLetterResponse{Applied: !req.GetDrop()}, nil
}

// repairReports is the least time between two reports of a repair's progress.
const repairReports = 500 * time.Millisecond

// RepairIndexes makes the indexes agree with the sessions.
func (a *Admin) RepairIndexes(_ *sessionv1.RepairIndexesRequest, stream grpc.ServerStreamingServer[sessionv1.RepairIndexesResponse]) error {
	if !a.repairing.TryLock() {
		return rpc.Error(codes.ResourceExhausted, rpc.ReasonLimitReached, "this replica runs a repair already", nil, retryAfter)
	}
	defer a.repairing.Unlock()
	var reported time.Time
	r, err := a.store.Repair(stream.Context(), storage.RepairQuery{Report: func(r storage.RepairResult) {
		if now := time.Now(); now.Sub(reported) >= repairReports {
			reported = now
			_ = stream.Send(repairReport(r)) // one that has left ends the repair by its context
		}
	}})
	if a.OnRepair != nil {
		a.OnRepair(stream.Context(), r, err)
	}
	if errors.Is(err, storage.ErrPartly) {
		return rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable,
			"the repair is not complete, and the format is unchanged: slots are moving, or a part of the store cannot answer; repair again later", nil, wait(err))
	}
	if err != nil {
		return err
	}
	report := repairReport(r)
	report.DataFormat = a.store.Status(stream.Context()).Format
	return stream.Send(report)
}

func repairReport(r storage.RepairResult) *sessionv1.RepairIndexesResponse {
	return &sessionv1.RepairIndexesResponse{
		Keys: r.Keys, TotalKeys: r.Total, Sessions: r.Sessions, Restored: r.Restored, Dropped: r.Dropped, Skipped: r.Skipped, Done: r.Done,
	}
}
