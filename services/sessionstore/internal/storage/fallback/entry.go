package fallback

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// standing is how far an entry is to be believed.
type standing int

const (
	// known: this was the session's state when it was last seen.
	known standing = iota
	// doubted: a call may have ended or deleted it since; nobody knows.
	doubted
	// gone: the store said that a session which was known is no longer there.
	gone
	// deleted: it was deleted through this replica. Ids are never used again.
	deleted
)

// entry is what is remembered of a session. It is replaced, never changed.
type entry struct {
	standing standing
	// session is nil where it is gone or deleted.
	session *sessionv1.Session
	// seen is when the state was asked for, in Unix milliseconds; at is its
	// place in the order.
	seen int64
	at   uint64
	// derived: some of the session comes from an answer that did not say all of
	// it. Its revision is a lower bound then.
	derived bool
	// assumed: its user's sessions were revoked, which did not say which ones.
	// Any answer to a later call knows better.
	assumed bool
	size    int
}

// overhead is about what an entry needs besides the session's message, in
// bytes: the entry, its place in the cache and in the index of users.
const overhead = 512

func newEntry(s *sessionv1.Session, seen int64, at uint64) *entry {
	return (&entry{session: s, seen: seen, at: at}).weighed()
}

func (e *entry) weighed() *entry {
	e.size = overhead
	if e.session != nil {
		e.size += e.session.SizeVT()
	}
	return e
}

func over(s *sessionv1.Session) bool { return s.GetEndTime() != nil }

// phase is the session's as of now: deadlines pass whether or not the store
// answers.
func phase(s *sessionv1.Session, now int64) sessionv1.Session_Phase {
	if over(s) {
		return s.GetPhase()
	}
	t := lifetime.NewTerms(lifetime.Millis(s.GetCreateTime()), s.GetTtlPolicy())
	return lifetime.Phase(t, lifetime.State{Expire: lifetime.Millis(s.GetExpireTime()), LastActivity: lifetime.Millis(s.GetLastActivityTime())}, now)
}

// live says whether the session reads as one that can still change.
func live(s *sessionv1.Session, now int64) bool {
	p := phase(s, now)
	return p != sessionv1.Session_ENDED && p != sessionv1.Session_EXPIRED
}

// view is the session with its phase as of now.
func view(s *sessionv1.Session, now int64) *sessionv1.Session {
	p := phase(s, now)
	if p == s.GetPhase() {
		return s
	}
	out := storage.Shallow(s)
	out.Phase = p
	return out
}

// with returns the entry with one more answer about the session, which may be
// older than what is known. What clients change goes by the revision; deadline,
// extensions and last activity only ever grow, also without a new revision; and
// what is over stays over.
func (e *entry) with(s *sessionv1.Session, seen int64, at uint64) *entry {
	out := newEntry(s, seen, at)
	if e.session == nil || e.standing == doubted || e.assumed {
		return out
	}
	newer, other := out, e.session
	if over(e.session) && !over(s) || over(e.session) == over(s) && e.session.GetRevision() > s.GetRevision() {
		newer, other = e, s
	}
	if over(newer.session) {
		return newer
	}
	return newer.grown(other.GetExpireTime(), other.GetLastActivityTime(), other.GetExtensionCount())
}

// grown returns the entry with a deadline, a last activity and a count of
// extensions where they are later than its own.
func (e *entry) grown(expire, activity *timestamppb.Timestamp, extensions int32) *entry {
	s := e.session
	if lifetime.Millis(expire) <= lifetime.Millis(s.GetExpireTime()) &&
		lifetime.Millis(activity) <= lifetime.Millis(s.GetLastActivityTime()) && extensions <= s.GetExtensionCount() {
		return e
	}
	out := *e
	out.session, out.derived = storage.Shallow(s), true
	out.session.ExpireTime = later(s.GetExpireTime(), expire)
	out.session.LastActivityTime = later(s.GetLastActivityTime(), activity)
	out.session.ExtensionCount = max(s.GetExtensionCount(), extensions)
	return out.weighed()
}

func later(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if lifetime.Millis(a) < lifetime.Millis(b) {
		return b
	}
	return a
}

// extended returns the entry after an answer to a report of activity. Each
// extension is a revision of its own.
func (e *entry) extended(after *sessionv1.TTL) *entry {
	out := e.grown(after.GetExpireTime(), after.GetLastActivityTime(), after.GetExtensionCount())
	if more := out.session.GetExtensionCount() - e.session.GetExtensionCount(); more > 0 {
		out.session.Revision += int64(more) // grown made it ours
	}
	return out
}

// ended returns the entry of a live session whose user's sessions were revoked.
func (e *entry) ended(reason string, now int64, at uint64) *entry {
	s := storage.Shallow(e.session)
	s.Phase, s.EndTime, s.EndReason, s.UpdateTime = sessionv1.Session_ENDED, lifetime.Time(now), reason, lifetime.Time(now)
	s.Revision++
	out := newEntry(s, e.seen, at)
	out.assumed = true
	return out
}

// doubtful returns the entry of a session that may be over or gone.
func (e *entry) doubtful(at uint64) *entry {
	out := *e
	out.standing, out.at = doubted, at
	return &out
}

// unheard returns the entry after an answer that came too late to be believed,
// or was taken for one that did. What stands may be older than what the caller
// was told, so it is doubted, unless it is final; nil leaves it as it is.
func (e *entry) unheard(at uint64) *entry {
	if e == nil || e.session == nil || e.standing == doubted || over(e.session) && !e.assumed {
		return nil
	}
	return e.doubtful(at)
}

// tombstone returns the entry of a session that is not there any more, as of
// now.
func tombstone(st standing, now int64, at uint64) *entry {
	return (&entry{standing: st, seen: now, at: at}).weighed()
}
