package consumer

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/livinguniverse/stoker/services/activity/internal/policy"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// metrics are the service's own; what the tracker counts is read when asked.
type metrics struct {
	calls, items, reconnects metric.Int64Counter
	reported                 atomic.Int64
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
		items:      counter("extend.items", "{item}", "Decisions on reported activity, by outcome and kind"),
		reconnects: counter("reconnects", "{connection}", "Feed streams that broke"),
	}
	events := total("events", "{event}", "Feed entries by what they are: counted activity by kind, ignored, lifecycle")
	redelivered := total("redelivered", "{event}", "Feed entries that came again")
	evictions := total("evictions", "{session}", "Tracked sessions dropped for lack of room")
	tracked := gauge("tracked_sessions", "{session}", "Sessions tracked")
	pending := gauge("pending_sessions", "{session}", "Tracked sessions that wait for the store")
	outstanding := gauge("outstanding_entries", "{event}", "Feed entries received and not yet acknowledged, by shard")
	age, err := meter.Float64ObservableGauge("stoker.activity.watermark_age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest entry that is not acknowledged, by shard; 0 where there is none"))
	ratio, err2 := meter.Float64ObservableGauge("stoker.activity.coalescing_ratio", metric.WithUnit("1"),
		metric.WithDescription("Reports per counted activity since the start; 0 before the first"))
	if err := errors.Join(append(errs, err, err2)...); err != nil {
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
		for _, sh := range s.Shards {
			at := metric.WithAttributeSet(attribute.NewSet(attribute.Int("shard", int(sh.Shard))))
			o.ObserveInt64(outstanding, int64(sh.Outstanding), at)
			seconds := 0.0
			if sh.OldestAppend > 0 {
				seconds = max(0, float64(now().UnixMilli()-sh.OldestAppend)/1000)
			}
			o.ObserveFloat64(age, seconds, at)
		}
		o.ObserveFloat64(ratio, m.ratio(s))
		return nil
	}, events, redelivered, evictions, tracked, pending, outstanding, age, ratio)
	return m, err
}

// ratio is how many reports there were for each counted activity.
func (m *metrics) ratio(s tracker.Stats) float64 {
	counted := uint64(0)
	for _, n := range s.Counted {
		counted += n
	}
	if counted == 0 {
		return 0
	}
	return float64(m.reported.Load()) / float64(counted)
}

// answered counts the results of one call, one for each item. A kind that a
// policy made up counts as other, so that labels are bounded.
func (m *metrics) answered(ctx context.Context, items []tracker.Item, results []tracker.Result) {
	counts := map[[2]string]int64{}
	for i, r := range results {
		outcome := r.Outcome.String()
		switch {
		case r.Retry:
			outcome = "RETRY"
		case r.Rejected:
			outcome = "REJECTED"
		}
		kind := items[i].Kind
		if !slices.Contains(policy.Labels(), kind) {
			kind = policy.Labels()[0]
		}
		counts[[2]string{outcome, kind}]++
	}
	m.reported.Add(int64(len(items)))
	for at, n := range counts {
		m.items.Add(ctx, n, metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", at[0]), attribute.String("kind", at[1]))))
	}
}

func (m *metrics) close() { _ = m.registration.Unregister() }
