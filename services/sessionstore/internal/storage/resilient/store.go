package resilient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Options configure a store; the zero value of each field but Clock is its
// default.
type Options struct {
	Retry  resilience.RetryConfig
	Reads  resilience.LimitConfig
	Writes resilience.LimitConfig
	// Clock gives reports of activity without a time theirs, so that trying
	// again is the same report; required.
	Clock func() time.Time
}

// Store is a storage.Store over another. What is not listed here passes
// through: waits, feeds and sweeps hold no place, and repeat by themselves.
type Store struct {
	storage.Store
	clock         func() time.Time
	retrier       *resilience.Retrier
	reads, writes *resilience.Limit
}

var _ storage.Store = (*Store)(nil)

// New returns a store over inner, which it closes.
func New(inner storage.Store, opts Options) *Store {
	return &Store{
		Store: inner, clock: opts.Clock, retrier: resilience.NewRetrier(opts.Retry),
		reads: resilience.NewLimit("read", opts.Reads), writes: resilience.NewLimit("write", opts.Writes),
	}
}

// Loads returns how many reads and writes are under way, and their limits.
func (s *Store) Loads() (reads, readLimit, writes, writeLimit int) {
	reads, readLimit = s.reads.Load()
	writes, writeLimit = s.writes.Load()
	return reads, readLimit, writes, writeLimit
}

// worth says whether another try may help: not where a breaker is open, which
// is there to keep calls away.
func worth(err error) bool {
	var open *resilience.OpenError
	return errors.Is(err, storage.ErrUnavailable) && !errors.As(err, &open)
}

// unlimited is the key of contexts whose calls are not shed.
type unlimited struct{}

// Unlimited returns a context whose calls take no place within a limit and are
// never shed: for the few that belong to writes that were acknowledged before.
func Unlimited(ctx context.Context) context.Context {
	return context.WithValue(ctx, unlimited{}, true)
}

// once runs op within a limit.
func once[T any](ctx context.Context, l *resilience.Limit, op func(ctx context.Context) (T, error)) (T, error) {
	if ctx.Value(unlimited{}) != nil {
		return op(ctx)
	}
	p, err := l.Acquire()
	if err != nil {
		var none T
		return none, fmt.Errorf("%w: %w", storage.ErrExhausted, err)
	}
	// Whatever becomes of op, a panic included, its place is given back.
	took := false
	defer func() {
		if took {
			p.Record()
		} else {
			p.Drop()
		}
	}()
	v, err := op(ctx)
	// How long a failure took says nothing about how much the store can take.
	took = !errors.Is(err, storage.ErrUnavailable) && ctx.Err() == nil
	return v, err
}

func retried[T any](ctx context.Context, s *Store, l *resilience.Limit, op func(ctx context.Context) (T, error)) (T, error) {
	return resilience.Retry(ctx, s.retrier, worth, func(ctx context.Context) (T, error) { return once(ctx, l, op) })
}

// Get reads a session.
func (s *Store) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	return retried(ctx, s, s.reads, func(ctx context.Context) (*sessionv1.Session, error) { return s.Store.Get(ctx, id) })
}

// GetMany reads sessions; those whose node did not answer are tried again
// alone.
func (s *Store) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	return retriedEach(ctx, s, s.reads, ids, s.Store.GetMany,
		func(r storage.SessionResult) error { return r.Err })
}

// List pages through sessions.
func (s *Store) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	return retried(ctx, s, s.reads, func(ctx context.Context) (storage.SessionPage, error) { return s.Store.List(ctx, q) })
}

// ActiveUsers pages through users.
func (s *Store) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	return retried(ctx, s, s.reads, func(ctx context.Context) (storage.UserPage, error) { return s.Store.ActiveUsers(ctx, q) })
}

// Explain tells what became of a session's activity.
func (s *Store) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	return retried(ctx, s, s.reads, func(ctx context.Context) (storage.Explanation, error) { return s.Store.Explain(ctx, id) })
}

// ListEvents pages through a log. A wait holds no place among the reads.
func (s *Store) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	if q.Wait > 0 {
		return s.Store.ListEvents(ctx, q)
	}
	return retried(ctx, s, s.reads, func(ctx context.Context) (storage.EventPage, error) { return s.Store.ListEvents(ctx, q) })
}

// GetPolicy reads a project's policy.
func (s *Store) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	return retried(ctx, s, s.reads, func(ctx context.Context) (*sessionv1.ProjectPolicy, error) { return s.Store.GetPolicy(ctx, project) })
}

// ListPolicies pages through policies.
func (s *Store) ListPolicies(ctx context.Context, limit int, token string) (storage.PolicyPage, error) {
	return retried(ctx, s, s.reads, func(ctx context.Context) (storage.PolicyPage, error) {
		return s.Store.ListPolicies(ctx, limit, token)
	})
}
