package sessionstore

import (
	"context"
	"errors"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/telemetry"
)

const scope = "github.com/livinguniverse/stoker/services/sessionstore"

// newBreakers returns the registry of the circuit breakers. Every change of
// state is a log line, a count and an event of a span.
func newBreakers(cfg Config, tel *telemetry.Telemetry) (*resilience.Registry, error) {
	meter := tel.Meter.Meter(scope)
	tracer := tel.Tracer.Tracer(scope)
	changes, err1 := meter.Int64Counter("stoker_breaker_changes", metric.WithDescription("Changes of circuit breakers, by breaker and new state."))
	state, err2 := meter.Int64ObservableGauge("stoker_breaker_state", metric.WithDescription("State of circuit breakers: 0 closed, 1 open, 2 half-open."))
	failures, err3 := meter.Int64ObservableGauge("stoker_breaker_failures", metric.WithDescription("Failures in a row, by breaker."))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	breakers := resilience.NewRegistry(cfg.Breaker, func(c resilience.Change) {
		at := []attribute.KeyValue{attribute.String("class", c.Class), attribute.String("node", c.Node)}
		ctx, span := tracer.Start(context.Background(), "circuit breaker", trace.WithAttributes(at...))
		span.AddEvent("state changed", trace.WithAttributes(attribute.String("from", c.From.String()), attribute.String("to", c.To.String())))
		level := slog.LevelInfo
		if c.To == resilience.Open {
			level = slog.LevelWarn
		}
		tel.Log.Log(ctx, level, "circuit breaker is "+c.To.String(), slog.String("class", c.Class), slog.String("node", c.Node), slog.String("before", c.From.String()))
		changes.Add(ctx, 1, metric.WithAttributes(append(at, attribute.String("to", c.To.String()))...))
		span.End()
	})
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range breakers.List() {
			at := metric.WithAttributes(attribute.String("class", s.Class), attribute.String("node", s.Node))
			o.ObserveInt64(state, int64(s.State), at)
			o.ObserveInt64(failures, int64(s.Failures), at)
		}
		return nil
	}, state, failures)
	return breakers, err
}
