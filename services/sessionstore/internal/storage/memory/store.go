// Package memory is the embedded backend: sessions in this process's memory,
// deadlines enforced by an injected clock, and, with a data directory, every
// acknowledged write in a log on disk that survives a crash.
package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/btree"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

// Options configure a store; the zero value of each field is its default.
type Options struct {
	// Shards is 1 to 65,536; default 64. A durable store keeps the number it
	// was made with and refuses another.
	Shards int
	// MaxEvents is how many events a session's log keeps; default 1,000.
	MaxEvents int
	// SettleMax is how long past its deadline a session waits for consumers;
	// default 10 min.
	SettleMax time.Duration
	// Retention is how long an over session stays readable; default 1 h.
	Retention time.Duration
	// Clock tells the time; required.
	Clock func() time.Time
	// DataDir keeps the write-ahead log; empty for memory only.
	DataDir string
	// SnapshotBytes is how much log may grow before a snapshot replaces it;
	// default 64 MiB.
	SnapshotBytes int64
	// NoFeed appends nothing to the feeds: for a store that nobody consumes.
	NoFeed bool
	// Log tells of recovery and failed snapshots; nothing where nil.
	Log *slog.Logger

	// create makes the log's files; nil for the real ones.
	create func(path string) (wal.File, error)
}

func (o Options) withDefaults() (Options, error) {
	if o.Clock == nil {
		return o, errors.New("memory store: no clock")
	}
	if o.Shards == 0 {
		o.Shards = 64
	}
	if o.Shards < 0 || o.Shards > 1<<16 {
		return o, fmt.Errorf("memory store: got %d shards, want 1 to 65536", o.Shards)
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
	if o.SnapshotBytes <= 0 {
		o.SnapshotBytes = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Store implements storage.Store in memory.
//
// Each shard is guarded by its own lock, under which a change is applied and
// put into the log, so that the log holds a shard's changes in their order.
// Waiting for the disk happens after the lock is released and before the
// change is acknowledged.
type Store struct {
	opts   Options
	shards []*shard

	policies policies
	feeds    feeds
	holds    holds

	log         *wal.Log // nil without a data directory
	snapshots   sync.WaitGroup
	snapshoting atomic.Bool

	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
}

var _ storage.Store = (*Store)(nil)

// shard is everything of one shard.
type shard struct {
	mu       sync.Mutex
	n        int
	sessions map[string]*session
	requests map[string]string // request key -> session id

	byUser    *btree.BTreeG[string] // user NUL project NUL id
	byProject *btree.BTreeG[string] // project NUL user NUL id
	deadlines *btree.BTreeG[due]
	warnings  *btree.BTreeG[due]
	retired   *btree.BTreeG[due]

	// gone are deleted sessions, until when a replayed write must not bring them
	// back; ungone is the same by time.
	gone   map[string]int64
	ungone *btree.BTreeG[due]

	feed feed
}

// due is a session that something has to be done about at a time.
type due struct {
	at int64
	id string
}

func dueLess(a, b due) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return a.id < b.id
}

func newShard(n int) *shard {
	const degree = 32
	text := func() *btree.BTreeG[string] {
		return btree.NewG(degree, func(a, b string) bool { return a < b })
	}
	times := func() *btree.BTreeG[due] { return btree.NewG(degree, dueLess) }
	return &shard{
		n: n, sessions: map[string]*session{}, requests: map[string]string{},
		byUser: text(), byProject: text(), deadlines: times(), warnings: times(), retired: times(),
		gone: map[string]int64{}, ungone: times(),
		feed: feed{acked: map[string]storage.Cursor{}},
	}
}

// New opens a store. With a data directory it recovers what was acknowledged
// before; it fails when the directory is in use, damaged, or was made with
// another number of shards.
func New(opts Options) (*Store, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts, closed: make(chan struct{})}
	for n := range opts.Shards {
		s.shards = append(s.shards, newShard(n))
	}
	s.policies.init()
	s.feeds.groups = map[string]*group{}
	s.holds.from = map[string]int64{}
	if opts.DataDir != "" {
		if err := s.recover(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Status reports a failed log.
func (s *Store) Status(context.Context) storage.Status {
	st := storage.Status{Backend: "memory", Shards: len(s.shards), Durable: s.log != nil, Entries: int64(s.entries())}
	select {
	case <-s.closed:
		st.Err = storage.ErrClosed
	default:
		if s.log != nil {
			st.Err = s.log.Err()
		}
	}
	return st
}

// entries counts everything that is kept per session. What is remembered of
// deleted ones leaves by itself.
func (s *Store) entries() int {
	n := 0
	for _, sh := range s.shards {
		sh.mu.Lock()
		n += len(sh.sessions) + len(sh.requests) + sh.byUser.Len() + sh.byProject.Len() +
			sh.deadlines.Len() + sh.warnings.Len() + sh.retired.Len()
		sh.mu.Unlock()
	}
	return n
}

// Close ends waiting calls and makes what was written durable.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		s.feeds.closeAll()
		s.snapshots.Wait()
		if s.log != nil {
			s.closeErr = s.log.Close()
		}
	})
	return s.closeErr
}

func (s *Store) now() int64 { return s.opts.Clock().UnixMilli() }

// usable returns why no call can be served: the store is closed, or the
// caller's context is over.
func (s *Store) usable(ctx context.Context) error {
	select {
	case <-s.closed:
		return storage.ErrClosed
	default:
		return ctx.Err()
	}
}

// shardOf returns the shard of an id, nil when there can be no such session.
func (s *Store) shardOf(id string) *shard {
	n, ok := sessionid.Shard(id, len(s.shards))
	if !ok {
		return nil
	}
	return s.shards[n]
}

// session is one session and all that belongs to it, guarded by its shard.
type session struct {
	// view is what readers get: complete, immutable, replaced at each change.
	view  *sessionv1.Session
	terms lifetime.Terms
	state lifetime.State
	// over is ENDED or EXPIRED once the session is out of the live indexes.
	over sessionv1.Session_Phase
	// warned is the deadline that session:expiring was appended for.
	warned  int64
	purgeAt int64
	request string
	// writes are the WriteIDs of the latest updates, oldest first.
	writes []string
	log    eventLog
	// history is what became of its activity; nil for nothing yet.
	history *lifetime.History
}

func (x *session) userKey() string {
	return x.view.GetUser() + "\x00" + x.view.GetProject() + "\x00" + x.view.GetId()
}

func (x *session) projectKey() string {
	return x.view.GetProject() + "\x00" + x.view.GetUser() + "\x00" + x.view.GetId()
}

// phase is what the session is doing at now.
func (x *session) phase(now int64) sessionv1.Session_Phase {
	if x.over != sessionv1.Session_PHASE_UNSPECIFIED {
		return x.over
	}
	return lifetime.Phase(x.terms, x.state, now)
}

// at returns the session as of now. The message is kept until the next change,
// so that reading a session again costs nothing.
func (x *session) at(now int64) *sessionv1.Session {
	if p := x.phase(now); p != x.view.GetPhase() {
		x.view = storage.Shallow(x.view)
		x.view.Phase = p
	}
	return x.view
}

// refresh replaces the view after the state changed.
func (x *session) refresh(now int64, change func(v *sessionv1.Session)) {
	v := storage.Shallow(x.view)
	v.ExpireTime = lifetime.Time(x.state.Expire)
	v.LastActivityTime = lifetime.Time(x.state.LastActivity)
	v.ExtensionCount = x.state.Count
	if change != nil {
		change(v)
	}
	v.Phase = x.phase(now)
	x.view = v
}

// enlist puts a session into the indexes that its state belongs in.
func (sh *shard) enlist(x *session) {
	id := x.view.GetId()
	sh.sessions[id] = x
	if x.request != "" {
		sh.requests[x.request] = id
	}
	if x.over != sessionv1.Session_PHASE_UNSPECIFIED {
		sh.retired.ReplaceOrInsert(due{x.purgeAt, id})
		return
	}
	if x.view.GetUser() != "" {
		sh.byUser.ReplaceOrInsert(x.userKey())
	}
	sh.byProject.ReplaceOrInsert(x.projectKey())
	sh.schedule(x)
}

// schedule puts a live session's deadline and warning into their indexes.
func (sh *shard) schedule(x *session) {
	sh.deadlines.ReplaceOrInsert(due{x.state.Expire, x.view.GetId()})
	if x.warned != x.state.Expire {
		sh.warnings.ReplaceOrInsert(due{x.state.Expire - x.terms.ExtendBelow, x.view.GetId()})
	}
}

// unschedule is the opposite of schedule, for the state before a change.
func (sh *shard) unschedule(x *session) {
	sh.deadlines.Delete(due{x.state.Expire, x.view.GetId()})
	sh.warnings.Delete(due{x.state.Expire - x.terms.ExtendBelow, x.view.GetId()})
}

// delist takes a session out of every index; no index can leak.
func (sh *shard) delist(x *session) {
	sh.unschedule(x)
	sh.byUser.Delete(x.userKey())
	sh.byProject.Delete(x.projectKey())
	sh.retired.Delete(due{x.purgeAt, x.view.GetId()})
}

// remove forgets a session and wakes who waits for its events.
func (sh *shard) remove(x *session) {
	sh.delist(x)
	delete(sh.sessions, x.view.GetId())
	if sh.requests[x.request] == x.view.GetId() {
		delete(sh.requests, x.request)
	}
	x.log.wakeAll()
}
