package fallback

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Options configure a store; the zero value of each field but Clock is its
// default.
type Options struct {
	// Clock tells the time; required.
	Clock func() time.Time
	// MaxSessions and MaxBytes bound what is remembered of sessions; default
	// 100,000 and 256 MiB.
	MaxSessions int
	MaxBytes    int64
	// MaxPolicies bounds the projects whose policy is remembered; default 10,000.
	MaxPolicies int
	// MaxStale is how old an answer may be; default 48 h.
	MaxStale time.Duration
	// Fresh lets Get answer with what is remembered without asking, up to this age;
	// 0 for never. What this store ends, deletes or changes is never answered as
	// it was before; what others change, for this long at most.
	Fresh time.Duration
	// Stale is told of each answer from here and its age, 0 or more; nobody
	// where nil. It must not block.
	Stale func(ctx context.Context, age time.Duration)
	// Silent remembers, for Base, and answers nothing: the store's own errors
	// stay.
	Silent bool

	// stripes is how many marks keys share, of each kind; 4,096 but in tests.
	stripes int
}

func (o Options) withDefaults() (Options, error) {
	if o.Clock == nil {
		return o, errors.New("fallback: no clock")
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 100_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 256 << 20
	}
	if o.MaxPolicies == 0 {
		o.MaxPolicies = 10_000
	}
	if o.MaxSessions < 0 || o.MaxBytes < 0 || o.MaxPolicies < 0 {
		return o, fmt.Errorf("fallback: got %d sessions, %d bytes and %d policies, want more than 0", o.MaxSessions, o.MaxBytes, o.MaxPolicies)
	}
	if o.MaxStale == 0 {
		o.MaxStale = 48 * time.Hour
	}
	if o.stripes == 0 {
		o.stripes = 1 << 12
	}
	if o.Stale == nil {
		o.Stale = func(context.Context, time.Duration) {}
	}
	return o, nil
}

// Store is a storage.Store over another. What is not listed here passes
// through.
type Store struct {
	storage.Store
	opts     Options
	order    *order
	sessions *sessions
	policies *policies
	catalog  *catalog // nil for none

	get, getMany, getPolicy tally
	hits                    atomic.Int64
}

// tally counts what became of the reads that the store did not answer.
type tally struct{ answers, misses atomic.Int64 }

func (t *tally) count() Count { return Count{Answers: t.answers.Load(), Misses: t.misses.Load()} }

var _ storage.Store = (*Store)(nil)

// New returns a store over inner, which it closes.
func New(inner storage.Store, opts Options) (*Store, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{Store: inner, opts: opts, order: newOrder(opts.stripes)}
	var err1, err2 error
	s.sessions, err1 = newSessions(opts, s.order)
	s.policies, err2 = newPolicies(opts.MaxPolicies, s.order)
	return s, errors.Join(err1, err2)
}

// Stats are counts since the start, and what is remembered now.
type Stats struct {
	// Reads are those that the store could not answer, by operation: get,
	// get_many (each session counts) and get_policy.
	Reads map[string]Count
	// Hits are the reads that were answered from here without asking.
	Hits int64
	// Sessions are remembered, within a few that are about to leave; Bytes is
	// about what they take.
	Sessions int
	Bytes    int64
}

// Count is how many reads were answered from here, and how many could not be.
type Count struct{ Answers, Misses int64 }

// Stats returns them.
func (s *Store) Stats() Stats {
	return Stats{
		Reads: map[string]Count{"get": s.get.count(), "get_many": s.getMany.count(), "get_policy": s.getPolicy.count()},
		Hits:  s.hits.Load(), Sessions: s.sessions.cache.EstimatedSize(), Bytes: s.sessions.bytes.Load(),
	}
}

func (s *Store) ticket() ticket { return ticket{at: s.order.now(), now: s.now()} }

func (s *Store) now() int64 { return s.opts.Clock().UnixMilli() }

func degraded(err error) bool { return errors.Is(err, storage.ErrUnavailable) }

// unknown says whether a write that failed may have been applied all the same:
// also one that was turned away, since a try before, whose answer was lost, may
// have been.
func unknown(err error) bool {
	var invalid *storage.InvalidError
	switch {
	case err == nil, errors.As(err, &invalid):
		return false
	default:
		return !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrEnded) &&
			!errors.Is(err, storage.ErrConflict)
	}
}

// saw takes what the store answered to a call about one session.
func (s *Store) saw(id string, out *sessionv1.Session, err error, t ticket) {
	switch {
	case err == nil:
		s.sessions.learn(out, t)
	case errors.Is(err, storage.ErrNotFound):
		s.sessions.missing(id, t)
	case errors.Is(err, storage.ErrEnded):
		s.sessions.finished(id, t.now)
	}
}

// recall answers a read from what is known, or with the store's own error.
func (s *Store) recall(id string, t *tally, err error) (*sessionv1.Session, time.Duration, error) {
	out, age, known := s.Base(id)
	if degraded(known) {
		t.misses.Add(1)
		return nil, 0, err
	}
	t.answers.Add(1)
	return out, age, known
}

// Get reads a session.
func (s *Store) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	t := s.ticket()
	if s.opts.Fresh > 0 {
		if out, ok := s.sessions.servable(id, t.now); ok {
			s.hits.Add(1)
			return out, ctx.Err()
		}
	}
	out, err := s.Store.Get(ctx, id)
	s.saw(id, out, err, t)
	if s.opts.Silent || !degraded(err) {
		return out, err
	}
	out, age, err := s.recall(id, &s.get, err)
	if !degraded(err) {
		s.opts.Stale(ctx, age)
	}
	return out, err
}

// GetMany reads sessions; those whose node does not answer come from here.
func (s *Store) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	t := s.ticket()
	out, err := s.Store.GetMany(ctx, ids)
	if err != nil && (s.opts.Silent || !degraded(err)) {
		return nil, err
	}
	if err != nil {
		out = make([]storage.SessionResult, len(ids))
		for i := range out {
			out[i].Err = err
		}
	}
	oldest, stale := time.Duration(0), false
	for i, id := range ids {
		r := &out[i]
		s.saw(id, r.Session, r.Err, t)
		if s.opts.Silent || !degraded(r.Err) {
			continue
		}
		var age time.Duration
		if r.Session, age, r.Err = s.recall(id, &s.getMany, r.Err); !degraded(r.Err) {
			oldest, stale = max(oldest, age), true
		}
	}
	if stale {
		s.opts.Stale(ctx, oldest)
	}
	return out, nil
}

// Outdated says that somebody has changed a session: it is asked for the next
// time that it is read.
func (s *Store) Outdated(id string) { s.sessions.outdated(id) }

// Forget doubts what is remembered of live sessions, and of policies: the store has
// lost what it is from, and knows better. What was seen to be over or deleted stays so.
func (s *Store) Forget() {
	s.order.barAll()
	s.sessions.doubtAll()
	s.policies.forget()
}

// List pages through sessions, and remembers them.
func (s *Store) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	t := s.ticket()
	page, err := s.Store.List(ctx, q)
	for _, sess := range page.Sessions {
		s.sessions.learn(sess, t)
	}
	return page, err
}

// GetPolicy reads a project's policy: creating a session takes it.
func (s *Store) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	t := s.ticket()
	out, err := s.Store.GetPolicy(ctx, project)
	switch {
	case err == nil:
		s.policies.learn(project, out, t)
		s.catalog.learn(project, out)
	case errors.Is(err, storage.ErrNotFound):
		s.policies.learn(project, nil, t)
		s.catalog.learn(project, nil)
	}
	if s.opts.Silent || !degraded(err) {
		return out, err
	}
	known, ok := s.knownPolicy(project)
	age := time.Duration(max(0, t.now-known.seen)) * time.Millisecond
	if !ok || age > s.opts.MaxStale {
		s.getPolicy.misses.Add(1)
		return nil, unknownPolicy(err)
	}
	s.getPolicy.answers.Add(1)
	s.opts.Stale(ctx, age)
	if known.policy == nil {
		return nil, storage.ErrNotFound
	}
	return known.policy, nil
}
