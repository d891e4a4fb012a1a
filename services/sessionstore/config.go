package sessionstore

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
)

// Backends.
const (
	StorageMemory = "memory"
	StorageRedis  = "redis"
)

// What becomes of a read or a write while Redis does not answer.
const (
	// FallbackFailFast: it fails at once.
	FallbackFailFast = "fail_fast"
	// FallbackStale: a read is answered from what is remembered, and marked.
	FallbackStale = "stale"
	// FallbackJournal: a write is kept on disk until Redis takes it.
	FallbackJournal = "journal"
)

// Config is the session store's configuration.
type Config struct {
	GRPCAddr  string
	AdminAddr string
	Grace     time.Duration

	Storage      string
	RedisURL     string
	RedisAccess  redis.Access
	RedisTimeout time.Duration
	// RequireSafeRedis refuses a Redis whose settings endanger data.
	RequireSafeRedis bool
	Breaker          resilience.BreakerConfig
	ReadFallback     string
	// ReadCache is how old a session may be that is read without asking Redis; 0
	// to ask always.
	ReadCache time.Duration
	// WriteFallback is empty for what Journals says.
	WriteFallback string
	// NearCache is how many sessions are remembered.
	NearCache int
	// JournalBytes bounds the writes that wait in the journal.
	JournalBytes int64
	// DataDir is the embedded store's directory or, with Redis, the journal's.
	DataDir   string
	Shards    int
	MaxEvents int
	SettleMax time.Duration
	Retention time.Duration
	LeaseTTL  time.Duration
	Sweep     time.Duration
	Census    time.Duration

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

// Journals says whether writes are journaled while Redis is away: where that is
// asked for, and by default where there is a directory for it.
func (c *Config) Journals() bool {
	if c.WriteFallback != "" {
		return c.WriteFallback == FallbackJournal
	}
	return c.Backend() == StorageRedis && c.DataDir != ""
}

// remembers says whether there is a near-cache: a journal asks it for the state
// that a write changes, also where it answers no reads.
func (c *Config) remembers() bool {
	return c.Backend() == StorageRedis && (c.ReadFallback == FallbackStale || c.Journals() || c.ReadCache > 0)
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
