package sessionstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// Validate returns everything that is wrong, joined.
func (c *Config) Validate() error {
	errs := []error{c.Auth.Validate(), c.Auth.CheckListen("grpc-addr", c.GRPCAddr), c.Auth.CheckListen("admin-addr", c.AdminAddr), c.Telemetry.Validate()}
	return errors.Join(append(errs, c.ValidateStore())...)
}

func wrong(flag string, got any, want string) error {
	return fmt.Errorf("--%s: got %v, want %s", flag, got, want)
}

// ValidateStore is Validate for what is not about serving.
func (c *Config) ValidateStore() error {
	var errs []error
	bad := func(flag string, got any, want string) { errs = append(errs, wrong(flag, got, want)) }
	switch c.Backend() {
	case StorageRedis:
		if c.RedisURL == "" {
			bad("redis-url", `""`, "a URL: --storage redis needs it")
		}
	case StorageMemory:
		if c.RequireSafeRedis {
			bad("require-safe-redis", true, "false: the embedded store has no Redis")
		}
	default:
		bad("storage", c.Storage, "redis or memory")
	}
	if c.ReadFallback != FallbackStale && c.ReadFallback != FallbackFailFast {
		bad("read-fallback", c.ReadFallback, "stale or fail_fast")
	}
	switch {
	case c.ReadCache == 0:
	case c.ReadCache < 10*time.Millisecond, c.ReadCache > 10*time.Second:
		bad("read-cache", c.ReadCache, "0, or 10ms to 10s")
	case c.Backend() == StorageMemory:
		bad("read-cache", c.ReadCache, "0: the embedded store reads from memory by itself")
	}
	errs = append(errs, c.checkLogins()...)
	errs = append(errs, c.checkJournal()...)
	for _, r := range []struct {
		flag           string
		got, low, high int
	}{
		{"shards", c.Shards, 1, 1024},
		{"max-events", c.MaxEvents, 1, 100_000},
		{"near-cache-sessions", c.NearCache, 1, 10_000_000},
		{"breaker-failures", c.Breaker.Failures, 1, 1000},
		{"breaker-successes", c.Breaker.Successes, 1, 1000},
		{"breaker-min-calls", c.Breaker.MinCalls, 1, 1_000_000},
		{"event-data-limit", c.EventData, 1, 1 << 20},
		{"session-data-limit", c.SessionData, 1, 2 << 20},
		{"max-labels", c.MaxLabels, 0, 1000},
	} {
		if r.got < r.low || r.got > r.high {
			bad(r.flag, r.got, fmt.Sprintf("%d to %d", r.low, r.high))
		}
	}
	for _, d := range []struct {
		flag string
		got  time.Duration
		low  time.Duration
	}{
		{"redis-timeout", c.RedisTimeout, time.Millisecond},
		{"breaker-delay", c.Breaker.Delay, time.Millisecond},
		{"breaker-window", c.Breaker.Window, 100 * time.Millisecond},
		{"settle-max", c.SettleMax, time.Millisecond},
		{"retention", c.Retention, time.Millisecond},
		{"lease-ttl", c.LeaseTTL, 300 * time.Millisecond},
		{"sweep-interval", c.Sweep, 10 * time.Millisecond},
		{"heartbeat", c.Heartbeat, 100 * time.Millisecond},
		{"poll-after", c.PollInterval, 0},
		{"census-interval", c.Census, 0},
	} {
		if d.got < d.low {
			bad(d.flag, d.got, "at least "+d.low.String())
		}
	}
	if c.Breaker.Rate < 0 || c.Breaker.Rate > 1 {
		bad("breaker-failure-rate", c.Breaker.Rate, "0 to 1")
	}
	for _, v := range lifetime.Check(c.policy()) {
		errs = append(errs, fmt.Errorf("default policy: %s: got %s, want %s", v.Field, v.Value, v.Want))
	}
	return errors.Join(errs...)
}
