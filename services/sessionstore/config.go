package sessionstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// Backends.
const (
	StorageMemory = "memory"
	StorageRedis  = "redis"
)

// Config is the session store's configuration.
type Config struct {
	GRPCAddr  string
	AdminAddr string
	Grace     time.Duration

	Storage      string
	RedisURL     string
	RedisTimeout time.Duration
	Breaker      resilience.BreakerConfig
	DataDir      string
	Shards       int
	MaxEvents    int
	SettleMax    time.Duration
	Retention    time.Duration
	LeaseTTL     time.Duration
	Sweep        time.Duration
	Census       time.Duration

	EventData    int
	SessionData  int
	MaxLabels    int
	PollInterval time.Duration
	Heartbeat    time.Duration

	Policy PolicyConfig

	// Clock tells the time; time.Now where nil. It is no flag.
	Clock func() time.Time

	Auth      auth.Config
	Telemetry telemetry.Config
}

// PolicyConfig is the server's default TTL policy.
type PolicyConfig struct {
	BaseTTL       time.Duration
	Extension     time.Duration
	MaxExtensions int32
	ExtendBelow   time.Duration
	MinInterval   time.Duration
	MaxLifetime   time.Duration
	ActiveWindow  time.Duration
}

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
	fs.StringVar(&c.RedisURL, "redis-url", "", "redis://[user:password@]host:port/db; several hosts for a cluster; redis+sentinel://host:port,.../master/db")
	fs.DurationVar(&c.RedisTimeout, "redis-timeout", 250*time.Millisecond, "how long one Redis command may take")
	fs.IntVar(&c.Breaker.Failures, "breaker-failures", 5, "failures in a row that open a circuit breaker; 1 to 1000")
	fs.DurationVar(&c.Breaker.Delay, "breaker-delay", 30*time.Second, "how long an open circuit breaker waits before it lets probes through")
	fs.IntVar(&c.Breaker.Successes, "breaker-successes", 3, "good probes that close a circuit breaker; 1 to 1000")
	fs.Float64Var(&c.Breaker.Rate, "breaker-failure-rate", 0, "open circuit breakers by this share of failures instead, up to 1; 0 for failures in a row")
	fs.IntVar(&c.Breaker.MinCalls, "breaker-min-calls", 20, "calls that a failure rate needs at least")
	fs.DurationVar(&c.Breaker.Window, "breaker-window", 10*time.Second, "time that a failure rate is taken over")
	fs.StringVar(&c.DataDir, "data-dir", "", "`directory` that makes the embedded store durable; empty for memory only")
	fs.IntVar(&c.Shards, "shards", 64, "number of shards, fixed for a deployment's life; 1 to 1024")
	fs.IntVar(&c.MaxEvents, "max-events", 1000, "events kept in a session's log; 1 to 100000")
	fs.DurationVar(&c.SettleMax, "settle-max", 10*time.Minute, "how long past its deadline a session waits for activity that is still in the feed")
	fs.DurationVar(&c.Retention, "retention", time.Hour, "how long an ended or expired session stays readable")
	fs.DurationVar(&c.LeaseTTL, "lease-ttl", 6*time.Second, "how long a feed consumer that has vanished keeps its shards")
	fs.DurationVar(&c.Sweep, "sweep-interval", 250*time.Millisecond, "time between two sweeps for due sessions")
	fs.DurationVar(&c.Census, "census-interval", time.Minute, "time between two counts of sessions by phase, for the metrics; 0 for none")
	fs.IntVar(&c.EventData, "event-data-limit", 64<<10, "most bytes of an event's data")
	fs.IntVar(&c.SessionData, "session-data-limit", 256<<10, "most bytes of a session's data")
	fs.IntVar(&c.MaxLabels, "max-labels", 64, "most labels of a session")
	fs.DurationVar(&c.PollInterval, "poll-after", 5*time.Second, "what pollers are told to wait")
	fs.DurationVar(&c.Heartbeat, "heartbeat", 15*time.Second, "longest silence of a watch")
	fs.DurationVar(&c.Policy.BaseTTL, "base-ttl", 24*time.Hour, "default policy: life at creation")
	fs.DurationVar(&c.Policy.Extension, "extension", 6*time.Hour, "default policy: what one extension adds")
	fs.Int32Var(&c.Policy.MaxExtensions, "max-extensions", 4, "default policy: extensions at most")
	fs.DurationVar(&c.Policy.ExtendBelow, "extend-below", 10*time.Minute, "default policy: extend when less is left")
	fs.DurationVar(&c.Policy.MinInterval, "min-interval", time.Hour, "default policy: time between extensions under ONCE_PER_INTERVAL")
	fs.DurationVar(&c.Policy.MaxLifetime, "max-lifetime", 0, "default policy: a session's whole life at most; 0 for no such cap")
	fs.DurationVar(&c.Policy.ActiveWindow, "active-window", 5*time.Minute, "default policy: a session with activity within this is ACTIVE")
}

// Backend is the storage in use.
func (c *Config) Backend() string {
	switch {
	case c.Storage != "":
		return c.Storage
	case c.RedisURL != "":
		return StorageRedis
	default:
		return StorageMemory
	}
}

// Validate returns everything that is wrong, joined.
func (c *Config) Validate() error {
	errs := []error{c.Auth.Validate(), c.Auth.CheckListen("grpc-addr", c.GRPCAddr), c.Auth.CheckListen("admin-addr", c.AdminAddr), c.Telemetry.Validate()}
	return errors.Join(append(errs, c.ValidateStore())...)
}

// ValidateStore is Validate for what is not about serving.
func (c *Config) ValidateStore() error {
	var errs []error
	bad := func(flag string, got any, want string) {
		errs = append(errs, fmt.Errorf("--%s: got %v, want %s", flag, got, want))
	}
	switch c.Backend() {
	case StorageRedis:
		if c.RedisURL == "" {
			bad("redis-url", `""`, "a URL: --storage redis needs it")
		}
		if c.DataDir != "" {
			bad("data-dir", c.DataDir, "nothing: it is the embedded store's")
		}
	case StorageMemory:
	default:
		bad("storage", c.Storage, "redis or memory")
	}
	for _, r := range []struct {
		flag           string
		got, low, high int
	}{
		{"shards", c.Shards, 1, 1024},
		{"max-events", c.MaxEvents, 1, 100_000},
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

// policy is the server's default, complete.
func (c *Config) policy() *sessionv1.TTLPolicy {
	p := &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(c.Policy.BaseTTL), Extension: durationpb.New(c.Policy.Extension),
		MaxExtensions: proto.Int32(c.Policy.MaxExtensions), ExtendBelow: durationpb.New(c.Policy.ExtendBelow),
		MinInterval: durationpb.New(c.Policy.MinInterval), ActiveWindow: durationpb.New(c.Policy.ActiveWindow),
	}
	if c.Policy.MaxLifetime > 0 {
		p.MaxLifetime = durationpb.New(c.Policy.MaxLifetime)
	}
	return lifetime.Resolve(p, lifetime.DefaultPolicy())
}
