package server

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Metrics counts what the handlers and the sweeper do.
type Metrics struct {
	sessions   metric.Int64Counter
	events     metric.Int64Counter
	extends    metric.Int64Counter
	extendRPCs metric.Int64Counter
	swept      metric.Int64Counter
	repaired   metric.Int64Counter
	waiters    metric.Int64UpDownCounter
	watchers   metric.Int64UpDownCounter
	outcomes   map[outcomeKey]metric.MeasurementOption
	census     atomic.Pointer[storage.Census]
}

type outcomeKey struct {
	outcome sessionv1.ExtendTTLResponse_Outcome
	kind    string
}

// knownKinds bounds the label: a kind that a policy made up counts as other.
var knownKinds = []string{"", "event", "input", "step_progress", "command", "chain", "chat", "file", "subscription"}

// NewMetrics registers the instruments; store is asked when they are read, and
// limits, nil where there are none.
func NewMetrics(provider metric.MeterProvider, store storage.Store, limits Limiter) (*Metrics, error) {
	m := provider.Meter("github.com/livinguniverse/stoker/services/sessionstore")
	out := &Metrics{outcomes: map[outcomeKey]metric.MeasurementOption{}}
	var errs []error
	counter := func(name, help string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithDescription(help))
		errs = append(errs, err)
		return c
	}
	gauge := func(name, help string) metric.Int64UpDownCounter {
		c, err := m.Int64UpDownCounter(name, metric.WithDescription(help))
		errs = append(errs, err)
		return c
	}
	out.sessions = counter("stoker_sessions_created", "Sessions created.")
	out.events = counter("stoker_events_appended", "Events appended by clients.")
	out.extends = counter("stoker_extend_ttl", "Judged activities by outcome and kind.")
	out.extendRPCs = counter("stoker_extend_ttl_calls", "Calls of ExtendTTL and BatchExtendTTL.")
	out.swept = counter("stoker_swept", "What sweeps did, by action.")
	out.repaired = counter("stoker_index_repairs", "Sessions whose index entries a census or a repair restored or corrected.")
	out.waiters = gauge("stoker_long_polls", "Long polls that wait now.")
	out.watchers = gauge("stoker_watches", "Watches that are open now.")
	for o := range sessionv1.ExtendTTLResponse_Outcome_name {
		for _, k := range append(slices.Clone(knownKinds), "other") {
			key := outcomeKey{sessionv1.ExtendTTLResponse_Outcome(o), k}
			out.outcomes[key] = metric.WithAttributeSet(attribute.NewSet(
				attribute.String("outcome", key.outcome.String()), attribute.String("kind", k)))
		}
	}
	out.Repaired(context.Background(), storage.RepairResult{}) // 0 from the start, so that the first jump shows
	errs = append(errs, observe(m, store, limits), out.observeCensus(m))
	return out, errors.Join(errs...)
}

// observeCensus registers what is known from the latest census.
func (m *Metrics) observeCensus(meter metric.Meter) error {
	live, err1 := meter.Int64ObservableGauge("stoker_sessions", metric.WithDescription("Live sessions by phase, as of the latest census; every replica counts all of them."))
	atCap, err2 := meter.Int64ObservableGauge("stoker_sessions_at_cap", metric.WithDescription("Live sessions that can get no further extension, as of the latest census."))
	_, err3 := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		c := m.census.Load()
		if c == nil {
			return nil
		}
		for _, p := range livePhases {
			o.ObserveInt64(live, c.ByPhase[p], metric.WithAttributes(attribute.String("phase", p.String())))
		}
		o.ObserveInt64(atCap, c.AtCap)
		return nil
	}, live, atCap)
	return errors.Join(err1, err2, err3)
}

var livePhases = []sessionv1.Session_Phase{sessionv1.Session_ACTIVE, sessionv1.Session_IDLE, sessionv1.Session_EXPIRING, sessionv1.Session_EXPIRED}

// Counted takes the result of a census.
func (m *Metrics) Counted(c storage.Census) { m.census.Store(&c) }

// observe registers what is read from the store itself.
func observe(m metric.Meter, store storage.Store, limiter Limiter) error {
	entries, err1 := m.Int64ObservableGauge("stoker_store_entries", metric.WithDescription("What the embedded store keeps per session, index entries included."))
	lag, err2 := m.Int64ObservableGauge("stoker_feed_lag", metric.WithDescription("Feed entries not yet acknowledged, by group and shard."))
	age, err3 := m.Float64ObservableGauge("stoker_feed_watermark_age", metric.WithUnit("s"), metric.WithDescription("Age of the watermark, by group and shard: the oldest entry that is not acknowledged, 0 where there is none."))
	losses, err7 := m.Int64ObservableCounter("stoker_store_data_losses", metric.WithDescription("How often the backend was seen to have lost its data."))
	span, err10 := m.Float64ObservableGauge("stoker_store_data_loss_span", metric.WithUnit("s"), metric.WithDescription("How far back the data had gone at the last loss; 0 where there was none or it is not known."))
	warnings, err8 := m.Int64ObservableGauge("stoker_store_warnings", metric.WithDescription("Warnings about the backend that hold now, by code."))
	clock, err9 := m.Float64ObservableGauge("stoker_store_clock_difference", metric.WithUnit("s"), metric.WithDescription("By how much this process's clock is ahead of the backend's; absent where it has not been measured."))
	loads, err5 := m.Int64ObservableGauge("stoker_store_calls", metric.WithDescription("Calls of the store under way, by class."))
	limits, err6 := m.Int64ObservableGauge("stoker_store_call_limit", metric.WithDescription("How many calls may be under way, by class; further ones are turned away."))
	_, err4 := m.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		if limiter != nil {
			reads, readLimit, writes, writeLimit := limiter.Loads()
			for class, v := range map[string][2]int{"read": {reads, readLimit}, "write": {writes, writeLimit}} {
				at := metric.WithAttributes(attribute.String("class", class))
				o.ObserveInt64(loads, int64(v[0]), at)
				o.ObserveInt64(limits, int64(v[1]), at)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		st := store.Status(ctx)
		if st.Entries >= 0 {
			o.ObserveInt64(entries, st.Entries)
		}
		o.ObserveInt64(losses, st.Losses)
		o.ObserveFloat64(span, st.LossSpan.Seconds())
		byCode := map[string]int64{}
		for _, w := range st.Warnings {
			byCode[w.Code]++
		}
		for code, n := range byCode {
			o.ObserveInt64(warnings, n, metric.WithAttributes(attribute.String("code", code)))
		}
		if st.ClockDifference != nil {
			o.ObserveFloat64(clock, st.ClockDifference.Seconds())
		}
		groups, err := store.Groups(ctx)
		if err != nil {
			return err
		}
		now := time.Now() // by the backend's clock, as watermarks are
		if st.ClockDifference != nil {
			now = now.Add(-*st.ClockDifference)
		}
		for _, g := range groups {
			at := metric.WithAttributes(attribute.String("group", g.Group), attribute.Int("shard", g.Shard))
			o.ObserveInt64(lag, g.Lag+g.Pending, at)
			behind := 0.0
			if g.Lag+g.Pending > 0 {
				behind = max(0, now.Sub(g.Watermark).Seconds())
			}
			o.ObserveFloat64(age, behind, at)
		}
		return nil
	}, entries, lag, age, loads, limits, losses, span, warnings, clock)
	return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10)
}

// Limiter limits how many calls of the store are under way.
type Limiter interface {
	Loads() (reads, readLimit, writes, writeLimit int)
}

func (m *Metrics) created(ctx context.Context)         { m.sessions.Add(ctx, 1) }
func (m *Metrics) appended(ctx context.Context, n int) { m.events.Add(ctx, int64(n)) }
func (m *Metrics) extended(ctx context.Context)        { m.extendRPCs.Add(ctx, 1) }

func (m *Metrics) outcome(ctx context.Context, o sessionv1.ExtendTTLResponse_Outcome, kind string) {
	if !slices.Contains(knownKinds, kind) {
		kind = "other"
	}
	m.extends.Add(ctx, 1, m.outcomes[outcomeKey{o, kind}])
}

// waiting counts a long poll until the returned function is called.
func (m *Metrics) waiting(ctx context.Context) func() {
	m.waiters.Add(ctx, 1)
	return func() { m.waiters.Add(ctx, -1) }
}

func (m *Metrics) watching(ctx context.Context) func() {
	m.watchers.Add(ctx, 1)
	return func() { m.watchers.Add(ctx, -1) }
}

// Swept counts what a sweep did.
func (m *Metrics) Swept(ctx context.Context, r storage.SweepResult) {
	for action, n := range map[string]int{"warned": r.Warned, "expired": r.Expired, "purged": r.Purged, "trimmed": r.Trimmed} {
		if n > 0 {
			m.swept.Add(ctx, int64(n), metric.WithAttributes(attribute.String("action", action)))
		}
	}
}

// Repaired counts what a repair of indexes did.
func (m *Metrics) Repaired(ctx context.Context, r storage.RepairResult) {
	m.repaired.Add(ctx, r.Restored)
}
