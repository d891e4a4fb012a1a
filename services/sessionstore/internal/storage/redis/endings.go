package redis

import (
	"context"
	"errors"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// ending is how a session that this process saw end came to its end.
type ending struct {
	kind endingKind
	// at is when, in Unix milliseconds.
	at int64
	// seen is the mark that was acknowledged last when this process saw it: Redis
	// had it at that time or later. 0 where there was no mark.
	seen   int64
	reason string
}

type endingKind uint8

const (
	endingExpired endingKind = iota
	endingEnded
	endingDeleted
	endingKinds
)

// endingOf are the kinds by the type of their lifecycle event.
var endingOf = map[string]endingKind{
	storage.TypeExpired: endingExpired, storage.TypeEnded: endingEnded, storage.TypeDeleted: endingDeleted,
}

const (
	endingStripes = 64
	// endingsMost bounds the endings of each kind that are remembered, the oldest of
	// which make room: a wave of expiries leaves the revocations.
	endingsMost = 100_000
)

// endings remembers sessions that were seen to end, so that data which has gone back
// in time revives none of them here: while it holds an id, reads do not return the
// session as live, and writes do not change it.
type endings struct {
	seed    maphash.Seed
	n       atomic.Int64
	stripes [endingStripes]endingStripe
}

type endingStripe struct {
	mu    sync.RWMutex
	by    map[string]ending
	rings [endingKinds]endingRing
}

// endingRing holds ids in the order in which they were remembered.
type endingRing struct {
	ids  []string
	next int
}

func newEndings() *endings {
	e := &endings{seed: maphash.MakeSeed()}
	for i := range e.stripes {
		e.stripes[i].by = map[string]ending{}
	}
	return e
}

func (e *endings) stripe(id string) *endingStripe {
	return &e.stripes[maphash.String(e.seed, id)%endingStripes]
}

// get returns how a session ended, false where that is not known.
func (e *endings) get(id string) (ending, bool) {
	if e.n.Load() == 0 {
		return ending{}, false
	}
	st := e.stripe(id)
	st.mu.RLock()
	defer st.mu.RUnlock()
	x, ok := st.by[id]
	return x, ok
}

// remember adds an ending. Of two endings of a session the deletion counts, and else
// the first: Redis had them in that order. Where the same is seen again, a loss has
// taken it and it was applied again: Redis has it since then.
func (e *endings) remember(id string, x ending) {
	if id == "" {
		return
	}
	st := e.stripe(id)
	st.mu.Lock()
	defer st.mu.Unlock()
	if old, known := st.by[id]; known && (old.kind == endingDeleted || x.kind != endingDeleted) {
		if old.kind == x.kind && x.seen > old.seen {
			old.seen = x.seen
			st.by[id] = old
		}
		return
	}
	id = strings.Clone(id) // it may be a part of a large reply
	x.reason = strings.Clone(x.reason)
	if evicted := st.rings[x.kind].push(id); evicted != "" && st.by[evicted].kind == x.kind {
		delete(st.by, evicted)
		e.n.Add(-1)
	}
	if _, known := st.by[id]; !known {
		e.n.Add(1)
	}
	st.by[id] = x
}

// push adds an id and returns the one whose place it takes, empty for none.
func (r *endingRing) push(id string) (evicted string) {
	if len(r.ids) < (endingsMost+endingStripes-1)/endingStripes {
		r.ids = append(r.ids, id)
		return ""
	}
	evicted, r.ids[r.next] = r.ids[r.next], id
	r.next = (r.next + 1) % len(r.ids)
	return evicted
}

// since returns the ended and deleted sessions that Redis may have had end at a time
// or later, in Unix milliseconds. Sessions that expired are left out: what is restored
// of one has a deadline that is no later.
func (e *endings) since(from int64) map[string]ending {
	out := map[string]ending{}
	for i := range e.stripes {
		st := &e.stripes[i]
		st.mu.RLock()
		for id, x := range st.by {
			if x.kind != endingExpired && (x.seen == 0 || max(x.at, x.seen) >= from) {
				out[id] = x
			}
		}
		st.mu.RUnlock()
	}
	return out
}

// err is the error of a write to a session with this ending.
func (x ending) err() error {
	if x.kind == endingDeleted {
		return storage.ErrNotFound
	}
	return storage.ErrEnded
}

// apply makes a session that was read as live read as over.
func (x ending) apply(s *sessionv1.Session) {
	s.Phase, s.EndTime, s.EndReason = sessionv1.Session_ENDED, lifetime.Time(x.at), x.reason
	if x.kind == endingExpired {
		s.Phase = sessionv1.Session_EXPIRED
	}
}

// sawEnd remembers the end of a session that Redis returned as over.
func (s *Store) sawEnd(out *sessionv1.Session) {
	if out.GetEndTime() == nil {
		return
	}
	if _, known := s.endings.get(out.GetId()); known {
		return
	}
	kind := endingEnded
	if out.GetPhase() == sessionv1.Session_EXPIRED {
		kind = endingExpired
	}
	s.remember(out.GetId(), kind, lifetime.Millis(out.GetEndTime()), out.GetEndReason())
}

func (s *Store) remember(id string, kind endingKind, at int64, reason string) {
	s.endings.remember(id, ending{kind: kind, at: at, seen: s.past.lastMark(), reason: reason})
}

// checkRevived returns the error of a write to a session that was seen to end and is
// live in Redis again, nil for any other. What Redis knows to be over it judges itself.
func (s *Store) checkRevived(ctx context.Context, sh *shard, id string) error {
	x, ended := s.endings.get(id)
	if !ended {
		return nil
	}
	cmd := goredis.NewStringCmd(ctx, "hget", sh.session(id), "st")
	if err := s.conn.read.do(ctx, cmd); err != nil && !errors.Is(err, goredis.Nil) {
		return failure(err)
	}
	if cmd.Val() != "0" {
		return nil
	}
	return x.err()
}

// hasEnded returns whether a session was seen to end.
func (s *Store) hasEnded(id string) bool {
	_, ended := s.endings.get(id)
	return ended
}

// extendOver answers a report of activity in a session that was seen to end. Where
// Redis knows that, too, its script remembers the report.
func (s *Store) extendOver(ctx context.Context, misses *absences, sh *shard, a storage.Activity) storage.ExtendResult {
	switch err := s.checkRevived(ctx, sh, a.SessionID); {
	case err == nil:
		r, err := s.extendOne(ctx, sh, a, present)
		return s.extended(ctx, misses, sh, r, err)
	case !errors.Is(err, storage.ErrEnded) && !errors.Is(err, storage.ErrNotFound):
		return storage.ExtendResult{Err: err}
	}
	sess, err := s.Get(ctx, a.SessionID)
	if errors.Is(err, storage.ErrNotFound) {
		return storage.ExtendResult{Response: lifetime.Missing()}
	}
	if err != nil {
		return storage.ExtendResult{Err: err}
	}
	now := s.now()
	at := now
	if !a.Time.IsZero() {
		at = a.Time.UnixMilli()
	}
	st := lifetime.State{
		Over: true, Expire: lifetime.Millis(sess.GetExpireTime()), Count: sess.GetExtensionCount(),
		LastActivity: lifetime.Millis(sess.GetLastActivityTime()),
	}
	policy := sess.GetTtlPolicy()
	terms := lifetime.NewTerms(lifetime.Millis(sess.GetCreateTime()), policy)
	return storage.ExtendResult{
		Response: lifetime.Response(sessionv1.ExtendTTLResponse_ENDED, terms, st, st, at, sess.GetPhase(), policy, now),
	}
}
