package sessionstore

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
)

// observeNearCache registers what a near-cache tells of itself when it is read.
func observeNearCache(provider metric.MeterProvider, near *fallback.Store) error {
	meter := provider.Meter(scope)
	answers, err1 := meter.Int64ObservableCounter("stoker_fallback_answers", metric.WithDescription("Reads that the store could not answer and that were answered from what is remembered, by operation."))
	misses, err2 := meter.Int64ObservableCounter("stoker_fallback_misses", metric.WithDescription("Reads that the store could not answer and that failed, as nothing is remembered, by operation."))
	sessions, err3 := meter.Int64ObservableGauge("stoker_near_cache_sessions", metric.WithDescription("Sessions whose last known state is remembered."))
	bytes, err4 := meter.Int64ObservableGauge("stoker_near_cache_bytes", metric.WithUnit("By"), metric.WithDescription("What the remembered sessions take, about."))
	hits, err6 := meter.Int64ObservableCounter("stoker_read_cache_hits", metric.WithDescription("Reads answered from memory without asking Redis (--read-cache)."))
	_, err5 := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := near.Stats()
		for operation, n := range st.Reads {
			at := metric.WithAttributes(attribute.String("operation", operation))
			o.ObserveInt64(answers, n.Answers, at)
			o.ObserveInt64(misses, n.Misses, at)
		}
		o.ObserveInt64(sessions, int64(st.Sessions))
		o.ObserveInt64(bytes, st.Bytes)
		o.ObserveInt64(hits, st.Hits)
		return nil
	}, answers, misses, sessions, bytes, hits)
	return errors.Join(err1, err2, err3, err4, err5, err6)
}
