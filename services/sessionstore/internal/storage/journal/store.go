package journal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

// What comes with storage.ErrUnavailable.
var (
	// errFull: the journal holds as much as it may.
	errFull = errors.New("it holds as much as it may")
	// errLettersFull: that is so because refused writes find no room among the
	// dead letters.
	errLettersFull = fmt.Errorf("%w, and %w", errFull, storage.ErrDeadLetters)
	// errWaiting: what was asked would be answered wrongly as long as accepted
	// writes wait to be replayed.
	errWaiting = errors.New("accepted writes wait to be replayed")
)

// Options configure a store; the zero value of each field that is not required
// is its default.
type Options struct {
	// Dir keeps the journal; required. It is created where it is missing, and
	// used by one process at a time.
	Dir string
	// Clock tells the time; required.
	Clock func() time.Time
	// Base returns the last known state of a session and how old that is,
	// storage.ErrNotFound where it is known not to be there any more, and
	// storage.ErrUnavailable where nothing is known; required.
	Base func(id string) (*sessionv1.Session, time.Duration, error)
	// Shards, MaxEvents, SettleMax and Retention are those of the store
	// underneath; Shards is required.
	Shards    int
	MaxEvents int
	SettleMax time.Duration
	Retention time.Duration
	// MaxBytes and MaxWrites bound what waits; default 256 MiB and 1,000,000.
	MaxBytes  int64
	MaxWrites int
	// MaxLetters and MaxLetterBytes bound the dead-letter queue; default 10,000
	// and a quarter of MaxBytes. A refused write for which there is no room in it
	// goes on waiting.
	MaxLetters     int
	MaxLetterBytes int64
	// Marked is told of each call that was acknowledged from the journal, Stale
	// of each that was answered from it, with the age of what the answer is built
	// on, 0 or more. They must not block; nobody is told where nil.
	Marked func(ctx context.Context)
	Stale  func(ctx context.Context, age time.Duration)
	// Log tells of recovery, dead letters and failures; nothing where nil.
	Log *slog.Logger

	// create makes the log's files; nil for the real ones.
	create func(path string) (wal.File, error)
	// reopenEvery is how often a broken journal is opened again; 1 s but in tests.
	reopenEvery time.Duration
	// replayWait is how long a write waits at most for the earlier ones of its
	// session to be replayed, while they are; 1 s but in tests.
	replayWait time.Duration
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" || o.Clock == nil || o.Base == nil || o.Shards < 1 {
		return o, errors.New("journal: directory, clock, base and shards are required")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 256 << 20
	}
	if o.MaxWrites == 0 {
		o.MaxWrites = 1_000_000
	}
	if o.MaxLetters == 0 {
		o.MaxLetters = 10_000
	}
	if o.MaxLetterBytes == 0 {
		o.MaxLetterBytes = o.MaxBytes / 4
	}
	if o.replayWait == 0 {
		o.replayWait = time.Second
	}
	if o.SettleMax <= 0 {
		o.SettleMax = 10 * time.Minute
	}
	if o.Marked == nil {
		o.Marked = func(context.Context) {}
	}
	if o.Stale == nil {
		o.Stale = func(context.Context, time.Duration) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.reopenEvery == 0 {
		o.reopenEvery = time.Second
	}
	return o, nil
}

// rememberedKeys is how many request keys are remembered, to know them in an
// outage.
const rememberedKeys = 100_000

// Store is a storage.Store over another. What is not listed here passes
// through.
type Store struct {
	storage.Store
	opts   Options
	holder string
	disk   disk
	// shadow holds the sessions that have writes waiting, as their callers were
	// told they are.
	shadow *memory.Store

	// Writes of one session, and creations under one request key, are accepted
	// one after the other. A session's lock comes before a
	// request's.
	seed               maphash.Seed
	sessions, requests [256]sync.Mutex
	// accepting is held for reading from the moment that a write gets its time
	// until it is among those that wait: who holds it for writing knows all.
	accepting sync.RWMutex

	waiting waiting
	letters letters
	board   *storage.WarningBoard
	// held: the store underneath has been told of a hold of this process.
	held atomic.Bool
	// postponed is since when this replica does not sweep, in Unix milliseconds, 0
	// while it does.
	postponed atomic.Int64
	// made are the sessions made of late, by the request key they were made under.
	made *otter.Cache[string, string]
	// said is the latest time, in Unix milliseconds, that a hold was moved to: who
	// was due before it may have been let go by any replica.
	said atomic.Int64
	// high is the latest start of a session's events, so that the next one comes
	// after whatever was accepted before it.
	high atomic.Pointer[storage.Cursor]

	depth  atomic.Int64
	wake   chan struct{}
	stop   context.CancelFunc
	drains sync.WaitGroup
	closed sync.Once
	closeE error
}

var _ storage.Store = (*Store)(nil)

// New opens the journal and returns a store over inner, which it closes. It
// fails when the directory is in use, cannot be written or is damaged: what was
// acknowledged may be in there.
func New(inner storage.Store, opts Options) (*Store, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	shadow, err := memory.New(memory.Options{
		Shards: opts.Shards, MaxEvents: opts.MaxEvents, SettleMax: opts.SettleMax, Retention: opts.Retention,
		Clock: opts.Clock, Log: opts.Log, NoFeed: true,
	})
	if err != nil {
		return nil, err
	}
	s := &Store{
		Store: inner, opts: opts, shadow: shadow, seed: maphash.MakeSeed(), wake: make(chan struct{}, 1),
		disk:  disk{opts: wal.Options{Dir: opts.Dir, Create: opts.create}},
		board: storage.NewWarningBoard(opts.Log, opts.Clock),
	}
	s.waiting.init()
	s.letters.init()
	if s.made, err = otter.New(&otter.Options[string, string]{MaximumSize: rememberedKeys}); err != nil {
		return nil, errors.Join(err, shadow.Close())
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", opts.Dir, err), s.disk.close(), shadow.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.drains.Go(func() { s.drain(ctx) })
	return s, nil
}

// recover reads what the directory holds and takes it up where it was left.
func (s *Store) recover() error {
	c := newContents()
	if err := s.disk.open(c.add); err != nil {
		return err
	}
	if s.holder = c.holder; s.holder == "" {
		s.holder = s.disk.name() // the log was erased
	}
	if s.holder != "" {
		s.said.Store(s.now().UnixMilli()) // what the process before has said is not known
	}
	if c.holder == "" {
		if err := s.name(); err != nil {
			return err
		}
	} else if s.disk.name() == "" {
		if err := s.disk.setName(s.holder); err != nil { // there is room later
			s.opts.Log.Debug("the journal's name is in its log alone", slog.Any("error", err))
		}
	}
	s.take(c)
	if n := s.depth.Load(); n > 0 {
		s.opts.Log.Info("writes of before wait in the journal", slog.Int64("writes", n))
		s.poke()
	}
	return nil
}

// name gives a new journal its name, and writes it down. One that is not new may be on
// a full disk.
func (s *Store) name() error {
	old := s.holder != ""
	if !old {
		s.holder = rand.Text()[:12]
	}
	record, err := holderRecord(s.holder)
	if err != nil {
		return err
	}
	at, err := s.disk.append(record)
	if old && err != nil && s.disk.failure() != nil {
		return nil //nolint:nilerr // mend writes it down
	}
	if err == nil {
		err = at.wait(context.Background())
	}
	if err != nil {
		return err
	}
	return s.disk.setName(s.holder)
}

// take rebuilds what waits: each session that has writes left starts from what
// was known of it when it last came here and takes all since, those that were
// replayed already included. What it left behind from before that is the store
// underneath's, which has changed it without us.
func (s *Store) take(c *contents) {
	// A number that something is said of is not given out again, also where the
	// write itself is no longer kept.
	for seq := range c.done {
		s.waiting.seq = max(s.waiting.seq, seq)
	}
	for seq := range c.dead {
		s.waiting.seq = max(s.waiting.seq, seq)
	}
	left, from := map[string]bool{}, map[string]int64{}
	sorted := c.sorted()
	for _, a := range sorted {
		id := a.write.SessionID
		if a.start != "" && !left[id] {
			from[id] = a.seq
		}
		if c.left(a.seq) {
			left[id] = true
		}
	}
	for _, a := range sorted {
		seq := a.seq
		s.waiting.seq = max(s.waiting.seq, seq)
		reason, dead := c.dead[seq]
		if dead && !c.done[seq] {
			s.letters.restore(s.letterID(seq), a, reason)
		}
		if !left[a.write.SessionID] || seq < from[a.write.SessionID] {
			continue
		}
		if a.base != nil {
			s.shadow.Adopt(a.base, a.start)
		}
		if err := s.shadow.Replay(context.Background(), a.write); err != nil {
			s.opts.Log.Debug("an accepted write is not shown", slog.Int64("write", seq), slog.Any("error", err))
		}
		if a.write.Create != nil {
			s.shadow.Floor(a.write.SessionID, a.start)
		}
		s.push(a, !c.left(seq))
	}
}

func (s *Store) now() time.Time { return s.opts.Clock().Truncate(time.Millisecond) }

func (s *Store) stripe(of *[256]sync.Mutex, key string) *sync.Mutex {
	return &of[maphash.String(s.seed, key)%uint64(len(of))]
}

// holds says whether a session has writes waiting.
func (s *Store) holds(id string) bool { return s.depth.Load() > 0 && s.waiting.has(id) }

func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Stats are how the journal is doing.
type Stats struct {
	// Waiting are writes that wait to be replayed, Bytes what they take.
	Waiting int64
	Bytes   int64
	// Oldest is when the first of them was accepted; zero for none.
	Oldest time.Time
	// Drained counts the writes replayed since the last time that none waited.
	Drained int64
	// Accepted counts the writes accepted since the start.
	Accepted int64
	// DeadLetters are kept. Parked are the sessions whose writes are not replayed
	// because there is no room for another one.
	DeadLetters int64
	Parked      int
	// Err is why the journal cannot be written, nil while it can.
	Err error
}

// Stats returns them.
func (s *Store) Stats() Stats {
	out := s.waiting.stats()
	out.DeadLetters, out.Err = s.letters.count(), s.Err()
	return out
}

// Status is that of the store underneath, with the journal's warnings.
func (s *Store) Status(ctx context.Context) storage.Status {
	st := s.Store.Status(ctx)
	st.Warnings = storage.MergeWarnings(st.Warnings, s.board.List())
	return st
}

// Err returns why the journal cannot be written, nil while it can.
func (s *Store) Err() error { return s.disk.failure() }

// Close replays what it can within a short time, and closes the store
// underneath. What is left is replayed after the next start.
func (s *Store) Close() error {
	s.closed.Do(func() {
		s.stop()
		s.drains.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), lastDrain)
		defer cancel()
		for moved := true; moved && s.depth.Load() > 0; {
			moved = s.round(ctx)
		}
		if s.depth.Load() == 0 {
			if err := s.Hold(ctx, s.holder, time.Time{}); err != nil {
				s.opts.Log.Debug("the hold stays until it is too old", slog.Any("error", err))
			}
		}
		s.mend()
		s.closeE = errors.Join(s.disk.close(), s.shadow.Close(), s.Store.Close())
	})
	return s.closeE
}

// lastDrain is how long Close may go on replaying.
const lastDrain = 2 * time.Second
