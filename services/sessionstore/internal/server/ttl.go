package server

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/propagation"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// ExtendTTL reports an activity.
func (s *Server) ExtendTTL(ctx context.Context, req *sessionv1.ExtendTTLRequest) (*sessionv1.ExtendTTLResponse, error) {
	a, err := s.activity(ctx, req)
	if err != nil {
		return nil, err
	}
	res, err := s.cfg.Store.Extend(ctx, []storage.Activity{a})
	if err != nil {
		return nil, err
	}
	s.cfg.Metrics.extended(ctx)
	if res[0].Err == nil {
		s.cfg.Metrics.outcome(ctx, res[0].Response.GetOutcome(), a.Kind)
	}
	return res[0].Response, res[0].Err
}

// activity checks one item. A session that is not the caller's is NOT_FOUND.
func (s *Server) activity(ctx context.Context, req *sessionv1.ExtendTTLRequest) (storage.Activity, error) {
	if err := s.may(ctx, req.GetId()); err != nil {
		return storage.Activity{}, err
	}
	if err := rpc.Invalid(checkTime("activityTime", req.GetActivityTime())...); err != nil {
		return storage.Activity{}, err
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	a := storage.Activity{
		SessionID: req.GetId(), Kind: strings.ToLower(req.GetActivityKind()),
		EventID: req.GetEventId(), Traceparent: carrier["traceparent"],
	}
	if req.GetActivityTime() != nil {
		a.Time = req.GetActivityTime().AsTime()
	}
	if len(req.GetCounts()) > 0 {
		a.Counts = make(map[string]int64, len(req.GetCounts()))
		for kind, n := range req.GetCounts() {
			a.Counts[strings.ToLower(kind)] += n
		}
	}
	return a, nil
}

// ExplainTTL tells what became of a session's activity.
func (s *Server) ExplainTTL(ctx context.Context, req *sessionv1.ExplainTTLRequest) (*sessionv1.TTLExplanation, error) {
	sess, err := s.reach(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	e, err := s.cfg.Store.Explain(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &sessionv1.TTLExplanation{
		Ttl:              lifetime.TTLOf(sess, s.cfg.Clock().UnixMilli()),
		LastActivityKind: e.Kind, Counts: e.Counts, Decisions: e.Decisions,
	}, nil
}

// BatchExtendTTL answers per item.
func (s *Server) BatchExtendTTL(ctx context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
	out := &sessionv1.BatchExtendTTLResponse{Results: make([]*sessionv1.BatchExtendTTLResponse_Result, len(req.GetItems()))}
	items := make([]storage.Activity, 0, len(req.GetItems()))
	place := make([]int, 0, len(req.GetItems()))
	for i, item := range req.GetItems() {
		out.Results[i] = &sessionv1.BatchExtendTTLResponse_Result{Id: item.GetId()}
		a, err := s.activity(ctx, item)
		if err != nil {
			out.Results[i].Answer = &sessionv1.BatchExtendTTLResponse_Result_Error{Error: itemError(err)}
			continue
		}
		items, place = append(items, a), append(place, i)
	}
	res, err := s.cfg.Store.Extend(ctx, items)
	if err != nil {
		return nil, err
	}
	s.cfg.Metrics.extended(ctx)
	for i, r := range res {
		if r.Err != nil {
			out.Results[place[i]].Answer = &sessionv1.BatchExtendTTLResponse_Result_Error{Error: itemError(r.Err)}
			continue
		}
		s.cfg.Metrics.outcome(ctx, r.Response.GetOutcome(), items[i].Kind)
		out.Results[place[i]].Answer = &sessionv1.BatchExtendTTLResponse_Result_Response{Response: r.Response}
	}
	return out, nil
}
