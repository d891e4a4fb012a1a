package consumer

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// metrics are the service's own; what the tracker counts is read when asked.
type metrics struct {
	calls, items, reconnects metric.Int64Counter
	registration             metric.Registration
}

func newMetrics(provider metric.MeterProvider, tr *tracker.Tracker, now func() time.Time) (*metrics, error) {
	meter := provider.Meter(scope)
	var errs []error
	counter := func(name, unit, what string) metric.Int64Counter {
		c, err := meter.Int64Counter("stoker.activity."+name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return c
	}
	total := func(name, unit, what string) metric.Int64ObservableCounter {
		c, err := meter.Int64ObservableCounter("stoker.activity."+name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return c
	}
	gauge := func(name, unit, what string) metric.Int64ObservableGauge {
		g, err := meter.Int64ObservableGauge("stoker.activity."+name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return g
	}
	m := &metrics{
		calls:      counter("extend.calls", "{call}", "BatchExtendTTL calls"),
		items:      counter("extend.items", "{item}", "Sessions reported by BatchExtendTTL, by outcome"),
		reconnects: counter("reconnects", "{connection}", "Feed streams that broke"),
	}
	events := total("events", "{event}", "Feed entries by what they are: counted activity by kind, ignored, lifecycle")
	redelivered := total("redelivered", "{event}", "Feed entries that came again")
	evictions := total("evictions", "{session}", "Tracked sessions dropped for lack of room")
	tracked := gauge("tracked_sessions", "{session}", "Sessions tracked")
	pending := gauge("pending_sessions", "{session}", "Tracked sessions that wait for the store")
	outstanding := gauge("outstanding_entries", "{event}", "Feed entries received and not yet acknowledged")
	age, err := meter.Float64ObservableGauge("stoker.activity.watermark_age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest entry that is not acknowledged"))
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}

	result := func(r, kind string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String("result", r), attribute.String("kind", kind)))
	}
	m.registration, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := tr.Stats()
		for i, n := range s.Counted {
			if n > 0 {
				o.ObserveInt64(events, int64(n), result("counted", policy.Labels()[i]))
			}
		}
		o.ObserveInt64(events, int64(s.Ignored), result("ignored", ""))
		o.ObserveInt64(events, int64(s.Lifecycle), result("lifecycle", ""))
		o.ObserveInt64(redelivered, int64(s.Redelivered))
		o.ObserveInt64(evictions, int64(s.Evicted))
		o.ObserveInt64(tracked, int64(s.Tracked))
		o.ObserveInt64(pending, int64(s.Pending))
		o.ObserveInt64(outstanding, int64(s.Outstanding))
		seconds := 0.0
		if s.OldestAppend > 0 {
			seconds = max(0, float64(now().UnixMilli()-s.OldestAppend)/1000)
		}
		o.ObserveFloat64(age, seconds)
		return nil
	}, events, redelivered, evictions, tracked, pending, outstanding, age)
	return m, err
}

// answered counts the results of one call.
func (m *metrics) answered(ctx context.Context, results []tracker.Result) {
	counts := map[string]int64{}
	for _, r := range results {
		switch {
		case r.Retry:
			counts["RETRY"]++
		case r.Rejected:
			counts["REJECTED"]++
		default:
			counts[r.Outcome.String()]++
		}
	}
	for outcome, n := range counts {
		m.items.Add(ctx, n, metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcome))))
	}
}

func (m *metrics) close() { _ = m.registration.Unregister() }
