package journal

import (
	"context"
	"errors"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

type created struct {
	session *sessionv1.Session
	existed bool
}

// Create stores a session.
func (s *Store) Create(ctx context.Context, in *sessionv1.Session, key string) (*sessionv1.Session, bool, error) {
	under := ""
	if key != "" {
		under = storage.RequestKey(in, key)
		if sess, err := s.underKey(ctx, in, under); sess != nil || err != nil {
			return sess, true, err
		}
	}
	out, err := writeWith(ctx, s, in.GetId(), with{key: under}, func() (created, error) {
		sess, existed, err := s.Store.Create(ctx, in, key)
		return created{sess, existed}, err
	}, func(at time.Time) (created, *storage.Write, error) {
		if sess, err := s.madeUnder(ctx, in, under); sess != nil || err != nil {
			return created{sess, true}, nil, err
		}
		sess, existed, err := s.shadow.Create(ctx, in, key)
		if err != nil || sess.GetId() != in.GetId() || s.waiting.has(in.GetId()) {
			return created{sess, existed}, nil, err
		}
		return created{sess, false}, s.told(ctx, &storage.Write{
			SessionID: in.GetId(), At: at,
			// The times that the caller is told, which are those of the shadow.
			Create: &storage.CreateWrite{Session: storage.CreatedAt(in, lifetime.Millis(sess.GetCreateTime())), RequestKey: key},
		}), nil
	})
	if err == nil && key != "" {
		s.made.Set(under, out.session.GetId())
	}
	return out.session, out.existed, err
}

// madeUnder returns the session that was made under a request key before the
// store underneath went away, nil where none was, as far as it is known here.
func (s *Store) madeUnder(ctx context.Context, in *sessionv1.Session, key string) (*sessionv1.Session, error) {
	id, ok := s.made.GetIfPresent(key)
	if !ok || id == in.GetId() || s.waiting.has(id) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	sess, age, err := s.opts.Base(id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, nil //nolint:nilnil // deleted: the key is free again
	case err != nil:
		return nil, err
	}
	s.opts.Stale(ctx, age)
	return sess, nil
}

// underKey returns the session that waits to be created under a request key,
// nil for none.
func (s *Store) underKey(ctx context.Context, in *sessionv1.Session, key string) (*sessionv1.Session, error) {
	id, ok := s.waiting.created(key)
	if !ok || id == in.GetId() {
		return nil, nil //nolint:nilnil // none is an answer
	}
	sess, err := s.Get(ctx, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil //nolint:nilnil // deleted: the key is free again
	}
	if err != nil {
		return nil, err
	}
	at, err := s.disk.last()
	if err == nil {
		err = at.wait(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.opts.Marked(ctx)
	return sess, nil
}
