package sessionstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/journal"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/resilient"
)

// backend is an open store, and those of its layers that there is something to
// ask: what one layer knows, the ones above it do not pass on.
type backend struct {
	// Store is the outermost layer.
	storage.Store
	// now is the clock by which the store judges deadlines. Whatever is above it
	// goes by that: a clock of its own would call live sessions expired.
	now func() time.Time
	// limits are those in front of Redis; nil with the embedded store.
	limits server.Limiter
	// near remembers sessions; nil where nothing does.
	near *fallback.Store
	// reads is near where reads are answered from it without asking.
	reads atomic.Pointer[fallback.Store]
	// known is near, for calls that may come before it is there.
	known atomic.Pointer[fallback.Store]
	// journal takes writes that Redis does not; nil where nothing does.
	journal *journal.Store
	// standsIn says whether a layer takes writes now while Redis does not
	// answer: the service can do its work then. Nil where none ever does.
	standsIn func() bool
}

// open opens the configured backend; what is above the store itself is, from
// the outside: journal, near-cache, retries and limits.
func open(ctx context.Context, cfg Config, tel *telemetry.Telemetry, breakers *resilience.Registry, marks *server.Marks) (*backend, error) {
	if cfg.Backend() == StorageMemory {
		store, err := memory.New(memory.Options{ //nolint:contextcheck // recovery is not bounded by a caller
			Shards: cfg.Shards, MaxEvents: cfg.MaxEvents, SettleMax: cfg.SettleMax, Retention: cfg.Retention,
			Clock: cfg.Clock, DataDir: cfg.DataDir, Log: tel.Log,
		})
		if err != nil {
			return nil, err
		}
		return &backend{Store: store, now: cfg.Clock}, nil
	}
	b := &backend{}
	store, err := redis.New(ctx, redis.Options{
		URL: cfg.RedisURL, Access: cfg.RedisAccess, Timeout: cfg.RedisTimeout, Breakers: breakers, Shards: cfg.Shards, MaxEvents: cfg.MaxEvents, SettleMax: cfg.SettleMax,
		Retention: cfg.Retention, LeaseTTL: cfg.LeaseTTL, Clock: cfg.Clock, Tracer: tel.Tracer, Log: tel.Log, MayBeAway: cfg.Journals(),
		RequireSafe: cfg.RequireSafeRedis,
		Changed:     b.changed, Lost: b.forgetLost, DataDir: cfg.DataDir,
	})
	if err != nil {
		return nil, err
	}
	b.now = store.Now
	guarded := resilient.New(store, resilient.Options{Clock: b.now})
	b.Store, b.limits = guarded, guarded
	if err := b.fallbacks(cfg, tel, marks); err != nil { //nolint:contextcheck // recovery is not bounded by a caller
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// changed is told of sessions that were changed, from before anything is open.
func (b *backend) changed(id string) {
	if reads := b.reads.Load(); reads != nil {
		reads.Outdated(id)
	}
}

// forgetLost is called when the store has lost data. What is remembered may be from that.
func (b *backend) forgetLost() {
	if near := b.known.Load(); near != nil {
		near.Forget()
	}
}

// fallbacks puts what answers while Redis does not over it.
func (b *backend) fallbacks(cfg Config, tel *telemetry.Telemetry, marks *server.Marks) error {
	if !cfg.remembers() {
		return nil
	}
	near, err := fallback.New(b.Store, fallback.Options{
		Clock: b.now, MaxSessions: cfg.NearCache, Stale: marks.Stale, Silent: cfg.ReadFallback != FallbackStale, Fresh: cfg.ReadCache,
	})
	if err != nil {
		return err
	}
	b.Store, b.near = near, near
	b.known.Store(near)
	if cfg.ReadCache > 0 {
		b.reads.Store(near)
	}
	if cfg.Journals() {
		return b.openJournal(cfg, tel, marks)
	}
	return nil
}

// works says whether calls can be served although the store answers err. With a
// part of a cluster away, each replica serves the rest: none must leave.
func (b *backend) works(err error) bool {
	return err == nil || errors.Is(err, storage.ErrPartly) || errors.Is(err, storage.ErrUnavailable) && b.standsIn != nil && b.standsIn()
}
