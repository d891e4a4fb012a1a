package journal

import (
	"context"
	"errors"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Get reads a session.
func (s *Store) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	for s.holds(id) {
		if out, since, ok := s.peek(ctx, id); ok {
			s.opts.Stale(ctx, since)
			return out.Session, out.Err
		}
	}
	return s.Store.Get(ctx, id)
}

// peek reads a session that has writes waiting, and how old the knowledge is
// that they are built on; false when it has none any more.
func (s *Store) peek(ctx context.Context, id string) (storage.SessionResult, time.Duration, bool) {
	since, _ := s.waiting.since(id)
	sess, err := s.shadow.Get(ctx, id)
	if _, still := s.waiting.since(id); !still {
		return storage.SessionResult{}, 0, false
	}
	return storage.SessionResult{Session: sess, Err: err}, max(0, s.now().Sub(since)), true
}

// GetMany reads sessions.
func (s *Store) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	if s.depth.Load() == 0 {
		return s.Store.GetMany(ctx, ids)
	}
	out := make([]storage.SessionResult, len(ids))
	var ask []string
	var places []int
	oldest, stale := time.Duration(0), false
	for i, id := range ids {
		if s.waiting.has(id) {
			if r, since, ok := s.peek(ctx, id); ok {
				out[i] = r
				oldest, stale = max(oldest, since), true
				continue
			}
		}
		ask, places = append(ask, id), append(places, i)
	}
	if len(ask) > 0 {
		res, err := s.Store.GetMany(ctx, ask)
		if err != nil && !errors.Is(err, storage.ErrUnavailable) {
			return nil, err
		}
		for j, i := range places {
			if err != nil {
				out[i].Err = err
			} else {
				out[i] = res[j]
			}
		}
	}
	if stale {
		s.opts.Stale(ctx, oldest)
	}
	return out, nil
}

// ListEvents pages through a session's log. Of one that has writes waiting only
// what was accepted here can be shown, so events from before are said to be
// missing.
func (s *Store) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	until := s.opts.Clock().Add(q.Wait)
	for s.holds(q.SessionID) {
		whole, since, ok := s.complete(q.SessionID)
		if !ok {
			break
		}
		page, err := s.shadow.ListEvents(ctx, q)
		if _, _, still := s.complete(q.SessionID); !still {
			// What woke the wait may be that the session left; the store underneath
			// has the same events.
			q.Wait = max(0, until.Sub(s.opts.Clock()))
			break
		}
		if err == nil && !whole {
			page.Truncated = page.Truncated || s.before(q, page)
		}
		s.opts.Stale(ctx, since)
		return page, err
	}
	return s.Store.ListEvents(ctx, q)
}

// complete says whether all of a session's log is here: it was created here.
func (s *Store) complete(id string) (whole bool, since time.Duration, ok bool) {
	w := &s.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queues[id]
	if q == nil {
		return false, 0, false
	}
	first := q.writes[0]
	return first.write.Create != nil, max(0, s.now().Sub(first.write.At)), true
}

// before says whether a page may miss events from before the first that was
// accepted here.
func (s *Store) before(q storage.EventQuery, page storage.EventPage) bool {
	if q.Tail > 0 {
		return len(page.Events) < q.Tail
	}
	after, err := storage.ParseCursor("after", q.After)
	since, ok := s.waiting.since(q.SessionID)
	return err == nil && ok && after.Millis < since.UnixMilli()
}

// List pages through sessions. It cannot be answered while writes wait: what it
// left out would look as if it were not there.
func (s *Store) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	if s.depth.Load() > 0 {
		return storage.SessionPage{}, unavailable(errWaiting)
	}
	return s.Store.List(ctx, q)
}

// ActiveUsers pages through users, as List does through sessions.
func (s *Store) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	if s.depth.Load() > 0 {
		return storage.UserPage{}, unavailable(errWaiting)
	}
	return s.Store.ActiveUsers(ctx, q)
}

// Census counts sessions, as List lists them.
func (s *Store) Census(ctx context.Context) (storage.Census, error) {
	if s.depth.Load() > 0 {
		return storage.Census{}, unavailable(errWaiting)
	}
	return s.Store.Census(ctx)
}

// RevokeUser ends a user's sessions. While writes wait it could miss some.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	if s.depth.Load() > 0 {
		return 0, unavailable(errWaiting)
	}
	return s.Store.RevokeUser(ctx, project, user, except, reason)
}

// Explain tells what became of a session's activity, of which only the store
// underneath knows all.
func (s *Store) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	out, err := s.Store.Explain(ctx, id)
	if errors.Is(err, storage.ErrNotFound) && s.holds(id) {
		return storage.Explanation{}, unavailable(errWaiting)
	}
	return out, err
}

// Replay is the store's underneath: what it is told has a journal already.
func (s *Store) Replay(ctx context.Context, w storage.Write) error { return s.Store.Replay(ctx, w) }
