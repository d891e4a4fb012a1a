// Package redis is the backend on Redis: a single server, behind Sentinel, or
// a cluster. Every change is one Lua script on the slot of one shard.
package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/singleflight"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Options configure a store; the zero value of each field but URL and Clock is
// its default.
type Options struct {
	// URL is as parseURL says; required.
	URL string
	// Access holds the logins and certificates that are in files.
	Access Access
	// Timeout bounds one round trip, whatever the callers' deadlines; default
	// 250 ms.
	Timeout time.Duration
	// MayBeAway lets New succeed while Redis does not answer. What is in Redis
	// is checked before the first operation that reaches it then, and if it was
	// made otherwise, every operation and Status fail from there on.
	MayBeAway bool
	// RequireSafe refuses servers whose settings endanger data, or cannot be checked:
	// New fails, and where it may succeed without Redis, operations are unavailable
	// until the servers pass.
	RequireSafe bool
	// Breakers holds the circuit breakers; a registry with defaults where nil.
	Breakers *resilience.Registry
	// Shards is 1 to 1,024; default 64. It is written to Redis at the first
	// start, and another number is refused from then on.
	Shards int
	// MaxEvents is how many events a session's log keeps; default 1,000.
	MaxEvents int
	// SettleMax is how long past its deadline a session waits for consumers;
	// default 10 min.
	SettleMax time.Duration
	// Retention is how long an over session stays readable; default 1 h.
	Retention time.Duration
	// LeaseTTL is how long a consumer that vanished keeps its shards; default
	// 6 s.
	LeaseTTL time.Duration
	// Resolve returns the addresses of a host name; those of the system where nil.
	Resolve func(ctx context.Context, host string) ([]string, error)
	// Clock is the process's own clock; required. The store asks Redis for the time,
	// which Now returns, and warns where Clock differs from it.
	Clock func() time.Time
	// Changed is told the id of a session whenever the feed has something of it,
	// whoever wrote that; nobody where nil. It must not block.
	Changed func(id string)
	// Lost is called when data in Redis was found to have been lost: what is
	// remembered of sessions may be from what is gone. It must not block; nil for
	// nobody.
	Lost func()
	// DataDir keeps the marks by which a loss is found that happens while the process
	// does not run; empty for nowhere. It is created where it is missing.
	DataDir string
	// Tracer traces operations; nowhere where nil.
	Tracer trace.TracerProvider
	// Log tells of a feed that cannot be read; nothing where nil.
	Log *slog.Logger

	// scriptHead goes in front of every script; empty but in tests, which change
	// the clock there. With ownClock, of tests too, Clock is right as it is.
	scriptHead string
	// checkEvery is checkInterval where 0; tests set it.
	checkEvery time.Duration
	ownClock   bool
}

func (o Options) withDefaults() (Options, error) {
	if o.Clock == nil {
		return o, errors.New("redis store: no clock")
	}
	if o.Timeout <= 0 {
		o.Timeout = 250 * time.Millisecond
	}
	if o.Shards == 0 {
		o.Shards = 64
	}
	if o.Shards < 0 || o.Shards > 1024 {
		return o, fmt.Errorf("redis store: got %d shards, want 1 to 1024", o.Shards)
	}
	if o.MaxEvents <= 0 {
		o.MaxEvents = 1000
	}
	if o.SettleMax <= 0 {
		o.SettleMax = 10 * time.Minute
	}
	if o.Retention <= 0 {
		o.Retention = time.Hour
	}
	if o.LeaseTTL <= 0 {
		o.LeaseTTL = 6 * time.Second
	}
	if o.Tracer == nil {
		o.Tracer = tracenoop.NewTracerProvider()
	}
	if o.Breakers == nil {
		o.Breakers = resilience.NewRegistry(resilience.BreakerConfig{}, nil)
	}
	if o.Resolve == nil {
		o.Resolve = net.DefaultResolver.LookupHost
	}
	if o.checkEvery <= 0 {
		o.checkEvery = checkInterval
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Store implements storage.Store on Redis.
type Store struct {
	opts     Options
	clock    *clock
	conn     *conn
	scripts  *scripts
	shards   []*shard
	tracer   trace.Tracer
	untraced bool // the tracer makes nothing of anything
	policies policyCache
	tail     *tail
	holds    holds
	scan     scan
	forecast forecast
	looks    looks
	past     *past
	endings  *endings
	again    reapply
	places   places

	// checked is what became of the check of what is in Redis; nil until it is
	// made, by one caller for all who wait.
	checked  atomic.Pointer[checked]
	checking singleflight.Group
	// epoch names the data that was there when it was last looked at.
	epoch atomic.Pointer[string]
	lost  storage.LossRecord
	// warnings are what endangers data or deadlines now.
	warnings    *storage.WarningBoard
	safety      *safety
	clockReport clockReport
	// dataFormat is the format of the data when it was last looked at.
	dataFormat atomic.Pointer[string]

	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
	work      sync.WaitGroup
}

var _ storage.Store = (*Store)(nil)

// New connects, and checks that what is in Redis was made with the same number
// of shards and key scheme. It fails with storage.ErrUnavailable when Redis
// does not answer, unless that may be.
func New(ctx context.Context, opts Options) (*Store, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	clock := newClock(opts.Clock)
	s := &Store{
		opts: opts, clock: clock, closed: make(chan struct{}), warnings: storage.NewWarningBoard(opts.Log, clock.now),
		tracer: opts.Tracer.Tracer("github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"),
	}
	_, s.untraced = opts.Tracer.(tracenoop.TracerProvider)
	s.safety = newSafety(s)
	s.holds.written = map[string]written{}
	for n := range opts.Shards {
		s.shards = append(s.shards, newShard(n))
	}
	s.tail = newTail(s)
	c, err := dial(opts.URL, dialOptions{ //nolint:contextcheck // the connections outlive the start
		files: opts.Access, timeout: opts.Timeout, breakers: opts.Breakers, resolve: opts.Resolve, switched: s.switched, login: s.noteLogin,
	})
	if err != nil {
		return nil, err
	}
	sc, err := loadScripts(opts.scriptHead + opts.constants(c.cluster))
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	s.conn, s.scripts = c, sc
	s.past, s.endings, s.again.signal = newPast(s), newEndings(), make(chan struct{}, 1)
	if err := s.past.load(opts.DataDir); err != nil {
		return nil, errors.Join(err, c.close())
	}
	err = s.check(ctx)
	var unsafe *unsafeError
	if opts.MayBeAway && errors.Is(err, storage.ErrUnavailable) && !errors.As(err, &unsafe) {
		err = nil // it is made later
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	s.work.Go(s.tail.run)
	s.work.Go(s.watchAccess)
	s.work.Go(s.runReapply)
	s.work.Go(s.safety.run)
	s.work.Go(s.followClock)
	return s, nil
}

// codeLogin is the warning that new connections cannot log in.
const codeLogin = "login"

// noteLogin raises the warning that new connections cannot log in, or clears it. Those
// that are logged in go on, so that nothing else may show it.
func (s *Store) noteLogin(ctx context.Context, refusal error) {
	if refusal == nil {
		s.warnings.Clear(ctx, codeLogin, "")
		return
	}
	s.warnings.Raise(ctx, codeLogin, "", "Redis refuses the login of new connections (wrong password, or the user is disabled); connections that are logged in go on until they are replaced: correct --redis-url or the password file")
}

// switched is called when the name of the server has come to stand for another one.
// That one may not have all that the one before had.
func (s *Store) switched(from, to string, first bool) {
	if first {
		s.opts.Log.Info("found the Redis server", slog.String("name", from), slog.String("address", to))
	} else {
		s.opts.Log.Warn("moved to another Redis server", slog.String("from", from), slog.String("to", to))
	}
	s.tail.lost.Store(true)
	s.safety.look()
}

func (s *Store) meta(ctx context.Context) (reply, error) {
	return s.run(ctx, s.scripts.meta.on(s.shards[0], "", s.opts.Shards, format, rand.Text()))
}

// noteMeta takes the deployment's meta hash from the reply to a look. It returns
// whether Redis has lost its data, or holds other data than before: a server that was
// flushed, or came back without persistence.
func (s *Store) noteMeta(ctx context.Context, r reply) (changed bool, err error) {
	found, now := r.text(mkFormat), r.text(mkEpoch)
	if r.text(mkShards) == "" || found == "" || now == "" {
		m, err := s.meta(ctx)
		if err != nil {
			return false, err
		}
		found, now = m.text(1), m.text(2)
	}
	s.dataFormat.Store(&found)
	before := s.epoch.Swap(&now)
	return before != nil && *before != now, nil
}

// Status asks Redis for a sign of life.
func (s *Store) Status(ctx context.Context) storage.Status {
	st := storage.Status{Backend: "redis", Shards: len(s.shards), Entries: -1}
	st.Losses, st.LastLoss = s.lost.Get()
	st.LossSpan = s.lost.Span()
	st.Warnings = s.warnings.List()
	if d, ok := s.clock.difference(); ok {
		st.ClockDifference = &d
	}
	if found := s.dataFormat.Load(); found != nil {
		st.Format = *found
	}
	if st.Err = s.usable(ctx); st.Err == nil {
		st.Err = s.alive(ctx)
	}
	return st
}

// alive asks the server; in a cluster every shard, so that every node with any is
// asked.
func (s *Store) alive(ctx context.Context) error {
	asked := s.shards
	if !s.conn.cluster {
		asked = asked[:1]
	}
	cmds := make([]*goredis.IntCmd, len(asked))
	for i, sh := range asked {
		cmds[i] = goredis.NewIntCmd(ctx, "exists", sh.feed())
	}
	if err := s.conn.read.pipeline(ctx, asCmders(cmds)...); err != nil {
		return err
	}
	var failed error
	answered := 0
	for _, cmd := range cmds {
		if err := failure(cmd.Err()); err != nil {
			failed = err
		} else {
			answered++
		}
	}
	return partly(failed, answered)
}

// partly marks the failure of some shards where others have answered.
func partly(failed error, answered int) error {
	if failed != nil && answered > 0 {
		return fmt.Errorf("%w: %w", storage.ErrPartly, failed)
	}
	return failed
}

// Close ends waiting calls and closes the connections.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		_ = s.conn.stream.close() // it says so again below
		s.work.Wait()
		s.past.close()
		s.closeErr = s.conn.close()
	})
	return s.closeErr
}

// usable says why no operation may begin.
func (s *Store) usable(ctx context.Context) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	if c := s.checked.Load(); c != nil {
		return c.err
	}
	return s.admit(ctx)
}

// untilClosed returns a context for work in the background, which ends when the store
// is closed.
func (s *Store) untilClosed() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	s.work.Go(func() {
		<-s.closed
		cancel()
	})
	return ctx, cancel
}

// open says whether neither the store is closed nor ctx has ended.
func (s *Store) open(ctx context.Context) error {
	select {
	case <-s.closed:
		return storage.ErrClosed
	default:
		return ctx.Err()
	}
}

func (s *Store) shardOf(id string) *shard {
	n, ok := sessionid.Shard(id, len(s.shards))
	if !ok {
		return nil
	}
	return s.shards[n]
}

// keep is how long past its deadline a live session's keys stay at least.
func (o Options) keep() int64 { return (o.SettleMax + time.Hour).Milliseconds() }

// linger is how long past its session's cap a request key stays: as long as the
// session can, if it is expired, and its retention begins, as late as may be.
func (o Options) linger() int64 {
	return 2*o.keep() + (o.Retention + time.Hour).Milliseconds()
}
