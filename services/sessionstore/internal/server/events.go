package server

import (
	"context"

	"google.golang.org/grpc"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// eventQuery is where a reader of a log wants to begin.
func eventQuery(id string, after *string, limit int) storage.EventQuery {
	q := storage.EventQuery{SessionID: id, Limit: limit}
	if after == nil || *after == "" {
		q.Tail = min(defaultTail, limit)
	} else {
		q.After = *after
	}
	return q
}

// ListEvents pages through a session's log.
func (s *Server) ListEvents(ctx context.Context, req *sessionv1.ListEventsRequest) (*sessionv1.ListEventsResponse, error) {
	if err := s.may(ctx, req.GetId()); err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit == 0 {
		limit = defaultEvents
	}
	q := eventQuery(req.GetId(), req.After, limit)
	q.Wait = req.GetWait().AsDuration()
	p, err := s.wait(ctx, q)
	if err != nil {
		return nil, err
	}
	return &sessionv1.ListEventsResponse{
		Events: p.Events, NextCursor: p.Next, Truncated: p.Truncated, PollAfter: s.pollAfter(p.More),
	}, nil
}

// wait lists events; a wait is cut short when the server stops.
func (s *Server) wait(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	if q.Wait == 0 {
		return s.cfg.Store.ListEvents(ctx, q)
	}
	defer s.cfg.Metrics.waiting(ctx)()
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.cfg.Stopping, cancel)() //nolint:contextcheck // the server's end, not the call's
	p, err := s.cfg.Store.ListEvents(waiting, q)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		q.Wait = 0
		return s.cfg.Store.ListEvents(ctx, q)
	}
	return p, err
}

// watchPage is how many events a watch reads at a time.
const watchPage = 200

// WatchEvents streams a session's log until the session is over.
func (s *Server) WatchEvents(req *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error {
	ctx := stream.Context()
	if err := s.may(ctx, req.GetId()); err != nil {
		return err
	}
	defer s.cfg.Metrics.watching(ctx)()
	q := eventQuery(req.GetId(), req.After, watchPage)
	for {
		p, err := s.wait(ctx, q)
		if err != nil {
			return err
		}
		for i, e := range p.Events {
			first := i == 0 && p.Truncated
			if err := stream.Send(&sessionv1.WatchEventsResponse{Event: e, Cursor: e.GetCursor(), Truncated: first}); err != nil {
				return err
			}
		}
		if p.Over || s.cfg.Stopping.Err() != nil {
			return nil
		}
		if len(p.Events) == 0 {
			if err := stream.Send(&sessionv1.WatchEventsResponse{Cursor: p.Next, Truncated: p.Truncated}); err != nil {
				return err
			}
		}
		q = storage.EventQuery{SessionID: req.GetId(), After: p.Next, Limit: watchPage, Wait: s.cfg.Heartbeat}
	}
}
