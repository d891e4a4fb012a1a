package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Create stores a new session.
func (s *Store) Create(ctx context.Context, in *sessionv1.Session, requestKey string) (*sessionv1.Session, bool, error) {
	return s.create(ctx, in, requestKey, s.moment())
}

func (s *Store) create(ctx context.Context, in *sessionv1.Session, requestKey string, m moment) (*sessionv1.Session, bool, error) {
	if err := s.writable(ctx); err != nil {
		return nil, false, err
	}
	sh := s.shardOf(in.GetId())
	if sh == nil {
		return nil, false, &storage.InvalidError{Field: "id", Value: storage.Shorten(in.GetId()), Want: "a session id"}
	}
	request := ""
	if requestKey != "" {
		request = storage.RequestKey(in, requestKey)
	}
	sh.mu.Lock()
	if id, ok := sh.requests[request]; ok && request != "" {
		if !m.replayed {
			existing := sh.sessions[id].at(m.now)
			sh.mu.Unlock()
			// The call that made it may still wait for the disk.
			return existing, true, s.settle(ctx, s.lastWrite())
		}
		request = "" // it stays with the session that has it
	}
	if made := sh.sessions[in.GetId()]; made != nil {
		if m.replayed && sh.moves(made, in) {
			return s.move(ctx, made, in, m)
		}
		existing := made.at(m.now)
		sh.mu.Unlock()
		return existing, false, s.settle(ctx, s.lastWrite())
	}
	if _, gone := sh.gone[in.GetId()]; gone && m.replayed {
		sh.mu.Unlock()
		return nil, false, s.settle(ctx, s.lastWrite())
	}
	if !m.replayed {
		in = storage.CreatedAt(in, m.at)
	}
	x := newSession(in, request, m.now)
	sh.enlist(x)
	tx := s.begin(sh)
	tx.put(x)
	s.lifecycle(tx, x, storage.Lifecycle{Type: storage.TypeCreated, At: m.at, Cursor: m.told, Expire: x.state.Expire}, m.now)
	view := x.view
	return view, false, s.commit(ctx, tx)
}

// newSession takes a session over from its message: times, policy and counts.
func newSession(in *sessionv1.Session, request string, now int64) *session {
	create := lifetime.Millis(in.GetCreateTime())
	x := &session{
		view:    storage.Shallow(in),
		terms:   lifetime.NewTerms(create, in.GetTtlPolicy()),
		request: request,
		state: lifetime.State{
			Expire:       lifetime.Millis(in.GetExpireTime()),
			Count:        in.GetExtensionCount(),
			LastActivity: lifetime.Millis(in.GetLastActivityTime()),
		},
	}
	x.view.Revision = max(1, in.GetRevision())
	x.view.CapTime = lifetime.Time(x.terms.Cap)
	x.refresh(now, nil)
	return x
}

// Get returns a session as of now.
func (s *Store) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	now := s.now()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	x := sh.sessions[id]
	if x == nil {
		return nil, storage.ErrNotFound
	}
	return x.at(now), nil
}

// GetMany answers per id.
func (s *Store) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	out := make([]storage.SessionResult, len(ids))
	for i, id := range ids {
		out[i].Session, out[i].Err = s.Get(ctx, id)
	}
	return out, nil
}

// live returns a session that could still change at a time. The shard must be
// locked.
func (sh *shard) live(id string, at int64) (*session, error) {
	x := sh.sessions[id]
	if x == nil {
		return nil, storage.ErrNotFound
	}
	if p := x.phase(at); p == sessionv1.Session_ENDED || p == sessionv1.Session_EXPIRED {
		return nil, storage.ErrEnded
	}
	return x, nil
}

// Update changes labels and data.
func (s *Store) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	return s.update(ctx, id, u, s.moment())
}

func (s *Store) update(ctx context.Context, id string, u storage.Update, m moment) (*sessionv1.Session, error) {
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	sh.mu.Lock()
	if x := sh.sessions[id]; x != nil && u.WriteID != "" && slices.Contains(x.writes, u.WriteID) {
		view := x.at(m.now)
		sh.mu.Unlock()
		return view, s.settle(ctx, s.lastWrite())
	}
	x, err := sh.live(id, m.at)
	if err == nil && u.IfRevision != 0 && u.IfRevision != x.view.GetRevision() {
		err = storage.ErrConflict
	}
	var labels map[string]string
	if err == nil {
		labels, err = u.Labels(x.view.GetLabels())
	}
	if err != nil {
		sh.mu.Unlock()
		return nil, err
	}
	if u.WriteID != "" {
		x.writes = append(x.writes, u.WriteID)
		x.writes = slices.Clone(x.writes[max(0, len(x.writes)-storage.MaxWriteIDs):])
	}
	x.refresh(m.now, func(v *sessionv1.Session) {
		v.Labels = labels
		if u.SetData {
			v.Data = u.Data
		}
		v.UpdateTime = lifetime.Time(m.at)
		v.Revision++
	})
	tx := s.begin(sh)
	tx.put(x)
	view := x.view
	return view, s.commit(ctx, tx)
}

// End ends a session.
func (s *Store) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	return s.end(ctx, id, reason, s.moment())
}

func (s *Store) end(ctx context.Context, id, reason string, m moment) (*sessionv1.Session, error) {
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	sh.mu.Lock()
	x := sh.sessions[id]
	if x == nil {
		sh.mu.Unlock()
		return nil, storage.ErrNotFound
	}
	if _, err := sh.live(id, m.at); err != nil {
		view := x.at(m.now)
		sh.mu.Unlock()
		return view, s.settle(ctx, s.lastWrite())
	}
	tx := s.begin(sh)
	s.retire(tx, x, sessionv1.Session_ENDED, reason, m)
	view := x.view
	return view, s.commit(ctx, tx)
}

// retire takes a session out of the live indexes, puts it under retention and
// appends session:ended or session:expired. Retention begins now, however long
// ago it was over.
func (s *Store) retire(tx *txn, x *session, phase sessionv1.Session_Phase, reason string, m moment) {
	tx.shard.delist(x)
	x.over, x.state.Over = phase, true
	x.purgeAt = m.now + s.opts.Retention.Milliseconds()
	l := storage.Lifecycle{Type: storage.TypeEnded, At: m.at, Cursor: m.told, Expire: x.state.Expire, Reason: reason}
	if phase == sessionv1.Session_EXPIRED {
		l.Type, l.Count = storage.TypeExpired, x.state.Count
	}
	x.refresh(m.now, func(v *sessionv1.Session) {
		v.EndTime, v.UpdateTime = lifetime.Time(m.at), lifetime.Time(m.at)
		v.EndReason = reason
		v.Revision++
	})
	tx.shard.retired.ReplaceOrInsert(due{x.purgeAt, x.view.GetId()})
	tx.hot(x)
	s.lifecycle(tx, x, l, m.now)
}

// Delete removes a session at once.
func (s *Store) Delete(ctx context.Context, id string) error {
	return s.delete(ctx, id, s.moment())
}

func (s *Store) delete(ctx context.Context, id string, m moment) error {
	if err := s.writable(ctx); err != nil {
		return err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return storage.ErrNotFound
	}
	sh.mu.Lock()
	x := sh.sessions[id]
	if x == nil && !m.replayed {
		sh.mu.Unlock()
		return storage.ErrNotFound
	}
	tx := s.begin(sh)
	until := m.now + s.opts.Retention.Milliseconds()
	sh.bury(id, until)
	tx.gone(id, until)
	if x != nil {
		sh.remove(x)
		tx.remove(id)
		e := storage.Lifecycle{Type: storage.TypeDeleted, At: m.at}.Event()
		s.publish(tx, id, storage.FeedEvent(e, true), m.now)
	}
	return s.commit(ctx, tx)
}

// lifecycle appends one of the store's own events to a session's log, as of its
// time, and to the feed, as of now.
func (s *Store) lifecycle(tx *txn, x *session, l storage.Lifecycle, now int64) {
	e := l.Event()
	tx.event(x, x.log.append(e, follow(x.log.last, l.Cursor, l.At), s.opts.MaxEvents))
	s.publish(tx, x.view.GetId(), storage.FeedEvent(e, true), now)
	x.log.wakeAll()
}

// publish appends an event to the feed.
func (s *Store) publish(tx *txn, id string, e *sessionv1.Event, now int64) {
	if !s.opts.NoFeed {
		tx.feed(tx.shard.feed.append(tx.shard.n, now, id, e))
	}
}

// List pages through sessions.
func (s *Store) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	if err := s.usable(ctx); err != nil {
		return storage.SessionPage{}, err
	}
	return storage.ListPages(q, len(s.shards), func(n int, src storage.ListSource, after string, limit int) ([]storage.Listed, error) {
		sh := s.shards[n]
		now := s.now()
		sh.mu.Lock()
		defer sh.mu.Unlock()
		var out []storage.Listed
		take := func(key, id string) bool {
			out = append(out, storage.Listed{Key: key, Session: sh.sessions[id].at(now)})
			return len(out) < limit
		}
		if src.Retired {
			sh.retired.AscendGreaterOrEqual(retiredAfter(after), func(d due) bool {
				key := retiredKey(d)
				return key <= after || take(key, d.id)
			})
			return out, nil
		}
		index := sh.byProject
		if src.ByUser {
			index = sh.byUser
		}
		index.AscendGreaterOrEqual(max(after, src.Prefix), func(key string) bool {
			if len(key) < len(src.Prefix) || key[:len(src.Prefix)] != src.Prefix {
				return false
			}
			return key <= after || take(key, storage.LastPart(key))
		})
		return out, nil
	})
}

// ActiveUsers pages through the users with live sessions.
func (s *Store) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	if err := s.usable(ctx); err != nil {
		return storage.UserPage{}, err
	}
	return storage.UserPages(q, len(s.shards), func(n int, prefix, after string, limit int) ([]*sessionv1.ActiveUser, error) {
		sh := s.shards[n]
		now := s.now()
		sh.mu.Lock()
		defer sh.mu.Unlock()
		var out []*sessionv1.ActiveUser
		var last *sessionv1.ActiveUser
		sh.byProject.AscendGreaterOrEqual(max(after, prefix), func(key string) bool {
			if len(key) < len(prefix) || key[:len(prefix)] != prefix {
				return false
			}
			if key <= after {
				return true
			}
			x := sh.sessions[storage.LastPart(key)]
			if x.view.GetUser() == "" || x.phase(now) == sessionv1.Session_EXPIRED {
				return true
			}
			if last != nil && last.GetUser() == x.view.GetUser() && last.GetProject() == x.view.GetProject() {
				last.SessionCount++
				return true
			}
			if len(out) == limit {
				return false
			}
			last = &sessionv1.ActiveUser{User: x.view.GetUser(), Project: x.view.GetProject(), SessionCount: 1}
			out = append(out, last)
			return true
		})
		return out, nil
	})
}

// RevokeUser ends all live sessions of a user in a project.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	if err := s.writable(ctx); err != nil {
		return 0, err
	}
	keep := maps.Collect(func(yield func(string, bool) bool) {
		for _, id := range except {
			if !yield(id, true) {
				return
			}
		}
	})
	sh := s.shards[storage.UserShard(project, user, len(s.shards))]
	m := s.moment()
	sh.mu.Lock()
	tx := s.begin(sh)
	n := 0
	for _, x := range slices.Collect(sh.ofUser(project, user)) {
		if keep[x.view.GetId()] || x.phase(m.at) == sessionv1.Session_EXPIRED {
			continue
		}
		s.retire(tx, x, sessionv1.Session_ENDED, reason, m)
		n++
	}
	return n, s.commit(ctx, tx)
}

// ofUser yields a user's live sessions in a project.
func (sh *shard) ofUser(project, user string) func(yield func(*session) bool) {
	prefix := user + "\x00" + project + "\x00"
	return func(yield func(*session) bool) {
		sh.byUser.AscendGreaterOrEqual(prefix, func(key string) bool {
			return len(key) >= len(prefix) && key[:len(prefix)] == prefix && yield(sh.sessions[storage.LastPart(key)])
		})
	}
}

// retiredKey and retiredAfter order over sessions by the time of their purge.
func retiredKey(d due) string { return fmt.Sprintf("%015d\x00%s", d.at, d.id) }

func retiredAfter(key string) due {
	at, id, _ := strings.Cut(key, "\x00")
	millis, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return due{}
	}
	return due{millis, id}
}
