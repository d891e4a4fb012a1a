package consumer

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

const scope = "github.com/livinguniverse/stoker/services/activity"

// report makes one BatchExtendTTL call, under a span that links to the events
// it reports.
func (c *Consumer) report(ctx context.Context, b tracker.Batch) {
	ctx, span := c.tracer.Start(ctx, "process feed",
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithLinks(links(b.Links)...),
		trace.WithAttributes(
			attribute.String("messaging.system", "stoker"),
			attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", "feed"),
			attribute.String("messaging.consumer.group.name", c.cfg.Group),
			attribute.Int("messaging.batch.message_count", len(b.Items)),
		))
	defer span.End()
	results, err := c.extend(ctx, b.Items)
	now := c.nowMillis()
	c.tracker.Applied(b.Items, results, now)
	c.metrics.answered(ctx, b.Items, results)
	if err == nil {
		c.reports.succeeded()
		return
	}
	c.reports.failed(now)
	span.RecordError(err)
	span.SetStatus(otelcodes.Error, "store did not answer")
	if ctx.Err() == nil {
		c.log.WarnContext(ctx, "activity not reported, trying again", slog.Int("sessions", len(b.Items)), slog.Any("error", err))
	}
}

func links(from []tracker.Link) []trace.Link {
	out := make([]trace.Link, 0, len(from))
	for _, l := range from {
		out = append(out, trace.Link{SpanContext: trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: l.TraceID, SpanID: l.SpanID, TraceFlags: trace.TraceFlags(l.Flags), Remote: true,
		})})
	}
	return out
}

// extend reports items and returns a result for each; with an error, those
// that were not answered are to be retried. A batch that is refused as invalid
// is halved until the item to blame stands alone.
func (c *Consumer) extend(ctx context.Context, items []tracker.Item) ([]tracker.Result, error) {
	req := &sessionv1.BatchExtendTTLRequest{Items: make([]*sessionv1.ExtendTTLRequest, 0, len(items))}
	for _, it := range items {
		req.Items = append(req.Items, &sessionv1.ExtendTTLRequest{
			Id: it.SessionID, ActivityTime: timestamp(it.Time), ActivityKind: it.Kind, EventId: it.EventID, Counts: it.Counts,
		})
	}
	c.metrics.calls.Add(ctx, 1)
	call, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	resp, err := c.store.BatchExtendTTL(call, req)
	cancel()
	if err != nil {
		return refused(items, err, func(half []tracker.Item) ([]tracker.Result, error) { return c.extend(ctx, half) },
			func() tracker.Result { return tracker.Result{Rejected: true, Reason: status.Convert(err).Message()} },
			func() tracker.Result { return tracker.Result{Retry: true} })
	}
	out := make([]tracker.Result, len(items))
	for i := range out {
		out[i] = tracker.Result{Retry: true}
		if i < len(resp.GetResults()) {
			out[i] = c.result(ctx, items[i].SessionID, resp.GetResults()[i])
		}
	}
	return out, nil
}

func (c *Consumer) result(ctx context.Context, id string, r *sessionv1.BatchExtendTTLResponse_Result) tracker.Result {
	if a := r.GetResponse(); a != nil {
		return tracker.Result{Outcome: a.GetOutcome(), Reason: a.GetReason(), After: a.GetAfter()}
	}
	switch e := status.FromProto(r.GetError()); {
	case r.GetError() == nil || !final(e.Code()):
		return tracker.Result{Retry: true}
	case e.Code() == codes.NotFound:
		return tracker.Result{Outcome: sessionv1.ExtendTTLResponse_NOT_FOUND, Reason: e.Message()}
	default:
		c.log.WarnContext(ctx, "the store rejects an activity", slog.String("session", id), slog.Any("error", e.Err()))
		return tracker.Result{Rejected: true, Reason: e.Message()}
	}
}

// ask makes one BatchGetSessions call.
func (c *Consumer) ask(ctx context.Context, ids []string) {
	asked := c.nowMillis()
	answers, err := c.sessions(ctx, ids)
	now := c.nowMillis()
	c.tracker.Resolve(answers, asked, now)
	if err == nil {
		c.questions.succeeded()
		return
	}
	c.questions.failed(now)
	if ctx.Err() == nil {
		c.log.WarnContext(ctx, "sessions not read, trying again", slog.Int("sessions", len(ids)), slog.Any("error", err))
	}
}

// sessions is to BatchGetSessions what extend is to BatchExtendTTL.
func (c *Consumer) sessions(ctx context.Context, ids []string) ([]tracker.Answer, error) {
	call, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	resp, err := c.store.BatchGetSessions(call, &sessionv1.BatchGetSessionsRequest{Ids: ids})
	cancel()
	if err != nil {
		out, err := refused(ids, err, func(half []string) ([]tracker.Answer, error) { return c.sessions(ctx, half) },
			func() tracker.Answer { return tracker.Answer{Rejected: true} },
			func() tracker.Answer { return tracker.Answer{Retry: true} })
		for i := range out {
			out[i].SessionID = ids[i]
		}
		return out, err
	}
	out := make([]tracker.Answer, len(ids))
	for i, id := range ids {
		out[i] = tracker.Answer{SessionID: id, Retry: true}
		if i >= len(resp.GetResults()) {
			continue
		}
		r := resp.GetResults()[i]
		switch code := codes.Code(r.GetError().GetCode()); {
		case r.GetSession() != nil:
			out[i] = tracker.Answer{SessionID: id, Session: r.GetSession()}
		case code == codes.NotFound:
			out[i] = tracker.Answer{SessionID: id, Gone: true}
		case final(code):
			out[i] = tracker.Answer{SessionID: id, Rejected: true}
		}
	}
	return out, nil
}

// refused answers for a call that failed as a whole: each part again where it
// was refused as invalid, a rejection where that part is a single one, and
// otherwise a retry for all.
func refused[T, R any](parts []T, err error, again func([]T) ([]R, error), rejected, retry func() R) ([]R, error) {
	if status.Code(err) != codes.InvalidArgument {
		out := make([]R, len(parts))
		for i := range out {
			out[i] = retry()
		}
		return out, err
	}
	if len(parts) == 1 {
		return []R{rejected()}, nil
	}
	half := len(parts) / 2
	first, err1 := again(parts[:half])
	second, err2 := again(parts[half:])
	if err1 == nil {
		err1 = err2
	}
	return append(first, second...), err1
}

// final says whether asking again can never help.
func final(c codes.Code) bool {
	switch c {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange:
		return true
	default:
		return false
	}
}

func timestamp(ms int64) *timestamppb.Timestamp {
	return &timestamppb.Timestamp{Seconds: ms / 1000, Nanos: int32(ms%1000) * 1e6}
}
