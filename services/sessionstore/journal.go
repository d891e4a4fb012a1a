package sessionstore

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/journal"
)

// checkJournal returns what is wrong with the flags that are about writes in an
// outage.
func (c *Config) checkJournal() []error {
	var errs []error
	switch c.WriteFallback {
	case "", FallbackFailFast, FallbackJournal:
	default:
		errs = append(errs, wrong("write-fallback", c.WriteFallback, "fail_fast or journal"))
	}
	if c.JournalBytes < 1<<20 {
		errs = append(errs, wrong("journal-max-bytes", c.JournalBytes, "at least 1048576"))
	}
	switch {
	case !c.Journals():
	case c.Backend() != StorageRedis:
		errs = append(errs, wrong("write-fallback", c.WriteFallback, "fail_fast: the embedded store has no outages"))
	case c.DataDir == "":
		errs = append(errs, wrong("data-dir", `""`, "a directory: --write-fallback journal keeps the writes there"))
	}
	return errs
}

// openJournal puts the outage journal over the near-cache, which knows the last
// state of a session that a write changes.
func (b *backend) openJournal(cfg Config, tel *telemetry.Telemetry, marks *server.Marks) error {
	j, err := journal.New(b.Store, journal.Options{
		Dir: cfg.DataDir, Clock: b.now, Base: b.near.Base, Shards: cfg.Shards, MaxEvents: cfg.MaxEvents, SettleMax: cfg.SettleMax,
		Retention: cfg.Retention, MaxBytes: cfg.JournalBytes, Marked: marks.Journaled, Stale: marks.Stale, Log: tel.Log,
	})
	if err != nil {
		return err
	}
	b.Store, b.journal = j, j
	b.near.KeepPolicies(filepath.Join(cfg.DataDir, "policies"), tel.Log)
	b.standsIn = func() bool { return j.Err() == nil }
	return nil
}

// observeJournal registers what the journal tells of itself when it is read.
func observeJournal(provider metric.MeterProvider, j *journal.Store, now func() time.Time) error {
	meter := provider.Meter(scope)
	waiting, err1 := meter.Int64ObservableGauge("stoker_journal_writes", metric.WithDescription("Accepted writes that wait in the journal for the store."))
	bytes, err2 := meter.Int64ObservableGauge("stoker_journal_bytes", metric.WithUnit("By"), metric.WithDescription("What they take on disk, about."))
	age, err3 := meter.Float64ObservableGauge("stoker_journal_age", metric.WithUnit("s"), metric.WithDescription("How long the oldest of them has waited; 0 where none does."))
	accepted, err4 := meter.Int64ObservableCounter("stoker_journal_accepted", metric.WithDescription("Writes accepted by the journal."))
	letters, err5 := meter.Int64ObservableGauge("stoker_journal_dead_letters", metric.WithDescription("Accepted writes that the store has refused."))
	broken, err6 := meter.Int64ObservableGauge("stoker_journal_broken", metric.WithDescription("1 while the journal cannot be written, else 0."))
	parked, err7 := meter.Int64ObservableGauge("stoker_journal_parked_sessions", metric.WithDescription("Sessions whose accepted writes are not replayed, since one was refused and the dead-letter queue is full."))
	_, err8 := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := j.Stats()
		o.ObserveInt64(waiting, st.Waiting)
		o.ObserveInt64(bytes, st.Bytes)
		o.ObserveInt64(accepted, st.Accepted)
		o.ObserveInt64(letters, st.DeadLetters)
		o.ObserveInt64(parked, int64(st.Parked))
		old, fails := 0.0, int64(0)
		if !st.Oldest.IsZero() {
			old = max(0, now().Sub(st.Oldest).Seconds())
		}
		if st.Err != nil {
			fails = 1
		}
		o.ObserveFloat64(age, old)
		o.ObserveInt64(broken, fails)
		return nil
	}, waiting, bytes, age, accepted, letters, parked, broken)
	return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8)
}
