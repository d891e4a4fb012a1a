package sessionstore

import (
	"time"

	"github.com/spf13/pflag"
)

// Flags registers every flag with its default.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.GRPCAddr, "grpc-addr", "127.0.0.1:9090", "`address` to serve gRPC on")
	fs.StringVar(&c.AdminAddr, "admin-addr", "127.0.0.1:9190", "`address` to serve /healthz, /readyz and /metrics on; empty for none")
	fs.DurationVar(&c.Grace, "grace", 10*time.Second, "how long running calls may go on at shutdown")
	fs.StringVar(&c.Storage, "storage", "", "redis or memory; redis where --redis-url is given, else memory")
	c.StoreFlags(fs)
	c.Auth.Flags(fs)
	c.Telemetry.Flags(fs)
}

// StoreFlags registers the flags that are not about serving.
func (c *Config) StoreFlags(fs *pflag.FlagSet) {
	c.redisFlags(fs)
	c.outageFlags(fs)
	fs.StringVar(&c.DataDir, "data-dir", "", "`directory` that makes the embedded store durable, empty for memory only; with Redis, where the outage journal, the projects' policies and the marks that detect lost data are kept")
	fs.IntVar(&c.Shards, "shards", 64, "number of shards, fixed for a deployment's life; 1 to 1024")
	fs.IntVar(&c.MaxEvents, "max-events", 1000, "events kept in a session's log; 1 to 100000")
	fs.DurationVar(&c.SettleMax, "settle-max", 10*time.Minute, "how long past its deadline a session waits for activity that is still in the feed")
	fs.DurationVar(&c.Retention, "retention", time.Hour, "how long an ended or expired session stays readable")
	fs.DurationVar(&c.LeaseTTL, "lease-ttl", 6*time.Second, "how long a feed consumer that has stopped without notice keeps its shards")
	fs.DurationVar(&c.Sweep, "sweep-interval", 250*time.Millisecond, "time between two sweeps for due sessions")
	fs.DurationVar(&c.Census, "census-interval", time.Minute, "time between two censuses: each counts sessions by phase for the metrics, and compares a part of the sessions with their index entries; 0 for none")
	fs.IntVar(&c.EventData, "event-data-limit", 64<<10, "most bytes of an event's data")
	fs.IntVar(&c.SessionData, "session-data-limit", 256<<10, "most bytes of a session's data")
	fs.IntVar(&c.MaxLabels, "max-labels", 64, "most labels of a session")
	fs.DurationVar(&c.PollInterval, "poll-after", 5*time.Second, "pollAfter in answers to pollers: how long to wait before the next poll")
	fs.DurationVar(&c.Heartbeat, "heartbeat", 15*time.Second, "longest silence of a watch")
	c.policyFlags(fs)
}

func (c *Config) redisFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.RedisURL, "redis-url", "", redisURLHelp)
	c.loginFlags(fs)
	fs.DurationVar(&c.RedisTimeout, "redis-timeout", 250*time.Millisecond, "how long one Redis command may take")
	fs.BoolVar(&c.RequireSafeRedis, "require-safe-redis", false, "refuse to start while settings of Redis endanger data (an eviction policy, no persistence, full coverage in a cluster) or while a server refuses INFO; with a journal, the store starts without Redis, and calls are UNAVAILABLE until the check passes")
	fs.IntVar(&c.Breaker.Failures, "breaker-failures", 5, "failures in a row that open a circuit breaker; 1 to 1000")
	fs.DurationVar(&c.Breaker.Delay, "breaker-delay", 30*time.Second, "how long an open circuit breaker waits before it allows probes")
	fs.IntVar(&c.Breaker.Successes, "breaker-successes", 3, "good probes that close a circuit breaker; 1 to 1000")
	fs.Float64Var(&c.Breaker.Rate, "breaker-failure-rate", 0, "open circuit breakers by this share of failures instead, up to 1; 0 for failures in a row")
	fs.IntVar(&c.Breaker.MinCalls, "breaker-min-calls", 20, "calls that a failure rate needs at least")
	fs.DurationVar(&c.Breaker.Window, "breaker-window", 10*time.Second, "time that a failure rate is taken over")
}

// outageFlags are about what is done while Redis does not answer.
func (c *Config) outageFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.ReadFallback, "read-fallback", FallbackStale, "what answers reads of single sessions while Redis is unavailable: stale for the last known state, marked as such; fail_fast for an error")
	fs.StringVar(&c.WriteFallback, "write-fallback", "", "what happens to writes while Redis is unavailable: fail_fast for an error, journal to keep them in --data-dir until Redis accepts them; the default is journal where --data-dir is given with Redis, else fail_fast")
	fs.IntVar(&c.NearCache, "near-cache-sessions", 100_000, "sessions whose last known state is remembered, within 256 MiB, with Redis; 1 to 10000000")
	fs.DurationVar(&c.ReadCache, "read-cache", 0, "answer reads of a session that was read within this from memory, without asking Redis: other replicas' changes may be seen that much later; 0 to ask always, else 10ms to 10s")
	fs.Int64Var(&c.JournalBytes, "journal-max-bytes", 256<<20, "most `bytes` of pending writes in the journal, and a quarter as many of dead letters; at least 1 MiB")
}

func (c *Config) policyFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&c.Policy.BaseTTL, "base-ttl", 24*time.Hour, "default policy: life at creation")
	fs.DurationVar(&c.Policy.Extension, "extension", 6*time.Hour, "default policy: what one extension adds")
	fs.Int32Var(&c.Policy.MaxExtensions, "max-extensions", 4, "default policy: extensions at most")
	fs.DurationVar(&c.Policy.ExtendBelow, "extend-below", 10*time.Minute, "default policy: extend when less is left")
	fs.DurationVar(&c.Policy.MinInterval, "min-interval", time.Hour, "default policy: time between extensions under ONCE_PER_INTERVAL")
	fs.DurationVar(&c.Policy.MaxLifetime, "max-lifetime", 0, "default policy: a session's whole life at most; 0 for no such cap")
	fs.DurationVar(&c.Policy.ActiveWindow, "active-window", 5*time.Minute, "default policy: a session with activity within this is ACTIVE")
}
