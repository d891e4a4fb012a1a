package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	// appendBatch and extendBatch are how many items the calls with many have.
	appendBatch = 50
	extendBatch = 200
	// setupCallers make the sessions.
	setupCallers = 16
	// baselineLog bounds the streams of baselines, as the store does.
	baselineLog = 1000
)

// filler is text of n bytes.
func filler(n int) string { return strings.Repeat("stoker ", n/7+1)[:n] }

// each calls do for 0 to n-1 from several goroutines, and returns what failed.
func each(n int, do func(i int) error) error {
	errs := make([]error, setupCallers)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += setupCallers {
				errs[w] = do(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func extendRequest(id string) *sessionv1.ExtendTTLRequest {
	return &sessionv1.ExtendTTLRequest{Id: id, ActivityKind: "input"}
}

// appendRequest leaves ids and times to the server, so that no event is a
// repetition.
func appendRequest(id string, n int) *sessionv1.AppendEventsRequest {
	req := &sessionv1.AppendEventsRequest{Id: id, Events: make([]*sessionv1.Event, n)}
	for i := range req.GetEvents() {
		req.Events[i] = &sessionv1.Event{Type: "input:text", Source: "bench", Data: structpb.NewStringValue(filler(eventBytes))}
	}
	return req
}

// getSession calls a server about the sessions of a fixture.
func getSession(s *service, f *fixture) op {
	return func(ctx context.Context, worker, n int) error {
		_, err := s.client(worker).GetSession(ctx, &sessionv1.GetSessionRequest{Id: f.pick(worker, n)})
		return err
	}
}

func extendTTL(s *service, f *fixture) op {
	return func(ctx context.Context, worker, n int) error {
		_, err := s.client(worker).ExtendTTL(ctx, extendRequest(f.pick(worker, n)))
		return err
	}
}

func batchExtendTTL(s *service, f *fixture) op {
	return func(ctx context.Context, worker, n int) error {
		req := &sessionv1.BatchExtendTTLRequest{Items: make([]*sessionv1.ExtendTTLRequest, extendBatch)}
		for i := range req.GetItems() {
			req.Items[i] = extendRequest(f.pick(worker, n*extendBatch+i))
		}
		resp, err := s.client(worker).BatchExtendTTL(ctx, req)
		for _, r := range resp.GetResults() {
			if e := r.GetError(); e != nil {
				return fmt.Errorf("item: %s", e.GetMessage())
			}
		}
		return err
	}
}

func appendEvents(s *service, f *fixture, events int) op {
	return func(ctx context.Context, worker, n int) error {
		_, err := s.client(worker).AppendEvents(ctx, appendRequest(f.pick(worker, n), events))
		return err
	}
}

// doer is go-redis as it is used: one command and its answer.
type doer func(ctx context.Context, args ...any) error

// directly sends each command in a round trip of its own, on a default client.
func (l *lab) directly(r *redis) doer {
	c := goredis.NewClient(&goredis.Options{Addr: r.Redis})
	l.onClose(c.Close)
	return func(ctx context.Context, args ...any) error { return c.Do(ctx, args...).Err() }
}

// pipelined sends the commands of concurrent callers together.
func (l *lab) pipelined(r *redis) (doer, error) {
	c := goredis.NewClient(&goredis.Options{Addr: r.Redis})
	l.onClose(c.Close)
	auto, err := c.AsyncAutoPipeline()
	if err != nil {
		return nil, err
	}
	l.onClose(auto.Close)
	return func(ctx context.Context, args ...any) error {
		cmd := goredis.NewCmd(ctx, args...)
		if err := auto.Submit(ctx, cmd).Wait(); err != nil {
			return err
		}
		return cmd.Err()
	}, nil
}

// hgetall reads what the plain service reads.
func hgetall(do doer, f *fixture) op {
	return func(ctx context.Context, worker, n int) error {
		return do(ctx, "hgetall", plainKey(f.pick(worker, n)))
	}
}

// script runs the store's own script of a session.
func script(do doer, t templates, f *fixture) op {
	return func(ctx context.Context, worker, n int) error { return do(ctx, t[f.pick(worker, n)]...) }
}
