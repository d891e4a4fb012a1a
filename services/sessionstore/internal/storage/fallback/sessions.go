package fallback

import (
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// sessions remembers sessions within bounds.
type sessions struct {
	cache *otter.Cache[string, *entry]
	order *order
	users *users
	// bytes is what the entries weigh by themselves, without the least share
	// that the cache counts for each.
	bytes atomic.Int64
	// maxAge is up to which age, in milliseconds, a session is served without
	// asking; 0 for never. enough is how old an entry gets before the same
	// answer is taken for it again.
	maxAge, enough int64
}

// ticket is taken when a call begins: its place in the order, and the time.
type ticket struct {
	at  uint64
	now int64
}

func newSessions(opts Options, o *order) (*sessions, error) {
	k := &sessions{order: o, users: newUsers(), maxAge: opts.Fresh.Milliseconds(), enough: enough}
	if k.maxAge > 0 {
		k.enough = min(enough, k.maxAge)
	}
	// One weight keeps both bounds: nobody weighs less than their share.
	share := uint32(min(opts.MaxBytes/int64(opts.MaxSessions), 1<<30))
	var err error
	k.cache, err = otter.New(&otter.Options[string, *entry]{
		MaximumWeight:    uint64(opts.MaxBytes),
		Weigher:          func(_ string, e *entry) uint32 { return max(share, uint32(e.size)) },
		OnAtomicDeletion: k.left,
	})
	return k, err
}

// left is told of every entry that is replaced or leaves, under the lock of its
// key. An answer that was under way when an entry left may be older than it.
func (k *sessions) left(e otter.DeletionEvent[string, *entry]) {
	k.bytes.Add(-int64(e.Value.size))
	if e.Cause == otter.CauseReplacement {
		return
	}
	k.order.bar(ofSession, e.Key)
	if s := e.Value.session; s != nil {
		k.users.remove(s.GetProject(), s.GetUser(), e.Key)
	}
}

// change replaces an entry; f returns nil to leave it as it is. The index of
// users goes first: whoever revokes bars the user, then asks the index, so one
// of the two sees the other.
func (k *sessions) change(id string, f func(old *entry) *entry) {
	k.cache.Compute(id, func(old *entry, found bool) (*entry, otter.ComputeOp) {
		if !found {
			old = nil
		}
		e := f(old)
		if e == nil || e == old {
			return old, otter.CancelOp
		}
		if old != nil && old.session != nil && e.session == nil {
			k.users.remove(old.session.GetProject(), old.session.GetUser(), id)
		}
		k.bytes.Add(int64(e.size))
		return e, otter.WriteOp
	})
}

// learn takes what the store answered about a session.
func (k *sessions) learn(s *sessionv1.Session, t ticket) {
	id := s.GetId()
	if k.fresh(s, t) {
		return
	}
	k.change(id, func(old *entry) *entry {
		first := old == nil || old.session == nil
		if old != nil && (old.standing == deleted || old.standing == gone && t.at < old.at) {
			return nil
		}
		if first {
			k.users.add(s.GetProject(), s.GetUser(), id)
		}
		if k.order.barred(ofSession, id, t.at) || k.order.barred(ofUser, userKey(s.GetProject(), s.GetUser()), t.at) {
			if first {
				k.users.remove(s.GetProject(), s.GetUser(), id)
			}
			return old.unheard(k.order.next())
		}
		if old == nil {
			old = &entry{}
		}
		return old.with(s, t.now, k.order.next())
	})
}

// enough is how old, in milliseconds, an entry gets at most before the same
// answer is taken for it again: sessions in use are read far more often than
// they change.
const enough = 1000

// fresh says whether the same is known already, and not for long. Looking also
// tells the cache that the session is in use.
func (k *sessions) fresh(s *sessionv1.Session, t ticket) bool {
	e, ok := k.cache.GetIfPresent(s.GetId())
	return ok && e.standing == known && !e.derived && !e.assumed && t.now-e.seen < k.enough &&
		e.session.GetRevision() == s.GetRevision() && over(e.session) == over(s) &&
		lifetime.Millis(e.session.GetLastActivityTime()) >= lifetime.Millis(s.GetLastActivityTime())
}

// servable returns a session that need not be asked for now: nothing is known to
// have changed it, and it was read not long ago. It takes no lock, so what was
// barred since is looked up. Past its deadline it is asked for, as others may
// have moved that.
func (k *sessions) servable(id string, now int64) (*sessionv1.Session, bool) {
	e, ok := k.cache.GetIfPresent(id)
	if !ok || e.standing != known || e.derived || e.assumed || now-e.seen >= k.maxAge || now < e.seen ||
		k.order.barred(ofSession, id, e.at) || k.order.barred(ofUser, userKey(e.session.GetProject(), e.session.GetUser()), e.at) {
		return nil, false
	}
	out := view(e.session, now)
	return out, over(out) || out.GetPhase() != sessionv1.Session_EXPIRED
}

// outdated says that somebody has changed a session since it was read.
func (k *sessions) outdated(id string) {
	if _, ok := k.cache.GetIfPresent(id); !ok {
		return // most events are about sessions that nobody reads here
	}
	k.change(id, func(old *entry) *entry {
		if old == nil || old.standing != known || old.derived {
			return nil
		}
		out := *old
		out.derived = true
		return &out
	})
}

// get returns what is known of a session. It waits for the lock of its key: an
// entry on its way out can be read without it for a moment longer than its
// user's index knows of it.
func (k *sessions) get(id string) (*entry, bool) {
	return k.cache.ComputeIfPresent(id, func(e *entry) (*entry, otter.ComputeOp) { return e, otter.CancelOp })
}

// missing takes the store's word that a session is not there. It counts only
// for one that was known: of an id that nobody knows here, somebody else may
// have accepted the creation already. A read from before may still find it.
func (k *sessions) missing(id string, t ticket) {
	k.order.bar(ofSession, id)
	k.change(id, func(old *entry) *entry {
		if old == nil || old.session == nil || t.at < old.at {
			return nil
		}
		return tombstone(gone, t.now, k.order.next())
	})
}

// delete remembers that a session was deleted for good.
func (k *sessions) delete(id string, now int64) {
	k.order.bar(ofSession, id)
	k.change(id, func(*entry) *entry { return tombstone(deleted, now, k.order.next()) })
}

// doubt says that a session may be over or gone.
func (k *sessions) doubt(id string) {
	k.order.bar(ofSession, id)
	k.change(id, func(old *entry) *entry {
		if old == nil || old.session == nil {
			return nil
		}
		return old.doubtful(k.order.next())
	})
}

// doubtAll doubts every session that would be served as live. What is over or gone
// stays so.
func (k *sessions) doubtAll() {
	for id := range k.cache.All() {
		k.change(id, func(old *entry) *entry {
			if old == nil || old.session == nil || old.standing != known || over(old.session) && !old.assumed {
				return nil
			}
			return old.doubtful(k.order.next())
		})
	}
}

// finished takes the store's word that a session is over, which does not say
// since when or why: one that would read as live is doubted. A read from before
// may still find it live.
func (k *sessions) finished(id string, now int64) {
	k.order.bar(ofSession, id)
	k.change(id, func(old *entry) *entry {
		if old == nil || old.session == nil || !live(old.session, now) {
			return nil
		}
		return old.doubtful(k.order.next())
	})
}

// extended takes the answer to a report of activity.
func (k *sessions) extended(id string, r *sessionv1.ExtendTTLResponse, t ticket) {
	switch r.GetOutcome() {
	case sessionv1.ExtendTTLResponse_NOT_FOUND:
		k.missing(id, t)
	case sessionv1.ExtendTTLResponse_ENDED:
		k.finished(id, t.now)
	default:
		k.change(id, func(old *entry) *entry {
			switch {
			case old == nil, old.session == nil:
				return nil
			case k.order.barred(ofSession, id, t.at),
				k.order.barred(ofUser, userKey(old.session.GetProject(), old.session.GetUser()), t.at):
				return old.unheard(k.order.next())
			case old.assumed: // it was not among those that were revoked
				return old.doubtful(k.order.next())
			case over(old.session):
				return nil
			}
			return old.extended(r.GetAfter())
		})
	}
}

// revoke ends a user's sessions but those in except, or doubts them where it is
// not known whether the store has ended them.
func (k *sessions) revoke(project, user string, except []string, reason string, now int64, sure bool) {
	k.order.bar(ofUser, userKey(project, user))
	keep := make(map[string]struct{}, len(except))
	for _, id := range except {
		keep[id] = struct{}{}
	}
	for _, id := range k.users.of(project, user) {
		if _, kept := keep[id]; kept {
			continue
		}
		k.change(id, func(old *entry) *entry {
			switch {
			case old == nil, old.session == nil, old.standing == doubted, over(old.session):
				return nil
			case !sure:
				return old.doubtful(k.order.next())
			case !live(old.session, now): // nothing to end
				return nil
			}
			return old.ended(reason, now, k.order.next())
		})
	}
}
