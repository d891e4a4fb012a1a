package storagetest

import (
	"cmp"
	"maps"
	"slices"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// refSession is a session as DESIGN.md has it, in the fewest words: a second
// opinion that shares no code with package lifetime. Times are Unix
// milliseconds.
type refSession struct {
	id, project                        string
	shard                              int
	create, expire, last, cause, limit int64 // limit: the latest deadline ever
	extension, below, interval, window int64
	count, most                        int
	revision                           int64
	strategy                           sessionv1.TTLPolicy_Strategy
	ids                                map[string]bool
	over                               sessionv1.Session_Phase
	warned, purge                      int64
}

// refEntry is an entry of a shard's feed.
type refEntry struct {
	appended int64 // what the feed has it as: never before the entry ahead of it
	at       int64 // when it was
	session  string
	typ      string
}

// reference is the model of a store.
type reference struct {
	settle, retention int64
	sessions          map[string]*refSession
	feeds             [Shards][]refEntry // all that was ever appended
	acked             [Shards]int        // how many of them the activity group has acknowledged
	grouped           bool               // whether there is an activity group
	told              map[string]int     // lifecycle events by session and type
}

func (m *reference) append(s *refSession, typ string, now int64) {
	f, stamp := m.feeds[s.shard], now
	if n := len(f); n > 0 {
		stamp = max(now, f[n-1].appended)
	}
	m.feeds[s.shard] = append(f, refEntry{appended: stamp, at: now, session: s.id, typ: typ})
	m.told[s.id+" "+typ]++
}

func (m *reference) extend(id string, at int64, event string, now int64) sessionv1.ExtendTTLResponse_Outcome {
	s := m.sessions[id]
	at = min(at, now)
	switch {
	case s == nil:
		return sessionv1.ExtendTTLResponse_NOT_FOUND
	case s.over != 0:
		return sessionv1.ExtendTTLResponse_ENDED
	case at >= s.expire:
		return sessionv1.ExtendTTLResponse_TOO_LATE
	}
	s.last = max(s.last, at)
	enough, counted := s.expire-at >= s.below, at <= s.cause
	switch s.strategy {
	case sessionv1.TTLPolicy_ONCE_PER_INTERVAL:
		if enough = false; s.cause != 0 && at > s.cause && at-s.cause < s.interval {
			return sessionv1.ExtendTTLResponse_TOO_SOON
		}
	case sessionv1.TTLPolicy_EVERY_ACTIVITY:
		if enough = false; event != "" {
			counted = s.ids[event]
		}
	default:
	}
	switch {
	case enough || counted:
		return sessionv1.ExtendTTLResponse_NOT_NEEDED
	case s.count >= s.most || s.expire >= s.limit:
		return sessionv1.ExtendTTLResponse_CAPPED
	}
	s.expire, s.count, s.cause = min(s.expire+s.extension, s.limit), s.count+1, max(s.cause, at)
	s.revision++
	s.ids[event] = true
	m.append(s, storage.TypeExtended, now)
	return sessionv1.ExtendTTLResponse_EXTENDED
}

// watermark is when the first entry was appended that is not acknowledged.
func (m *reference) watermark(shard int) int64 {
	if m.grouped && m.acked[shard] < len(m.feeds[shard]) {
		return m.feeds[shard][m.acked[shard]].appended
	}
	return 1 << 62
}

// sweep returns the sessions that expire.
func (m *reference) sweep(now int64) (expired []*refSession) {
	var marks [Shards]int64
	for n := range marks {
		marks[n] = m.watermark(n)
	}
	for _, s := range m.by(func(s *refSession) int64 { return s.expire - s.below }) {
		if s.over == 0 && s.warned != s.expire && s.expire-s.below < now {
			if s.warned = s.expire; s.expire > now {
				m.append(s, storage.TypeExpiring, now)
			}
		}
	}
	for _, s := range m.by(func(s *refSession) int64 { return s.expire }) {
		switch {
		case s.over == 0 && s.expire <= now && (marks[s.shard] > s.expire || now > s.expire+m.settle):
			m.end(s, sessionv1.Session_EXPIRED, storage.TypeExpired, now)
			expired = append(expired, s)
		case s.over != 0 && s.purge <= now:
			delete(m.sessions, s.id)
		}
	}
	return expired
}

// by returns the sessions in the order of a time.
func (m *reference) by(at func(s *refSession) int64) []*refSession {
	return slices.SortedFunc(maps.Values(m.sessions), func(a, b *refSession) int {
		return cmp.Or(cmp.Compare(at(a), at(b)), cmp.Compare(a.id, b.id))
	})
}

func (m *reference) end(s *refSession, phase sessionv1.Session_Phase, typ string, now int64) {
	s.over, s.purge = phase, now+m.retention
	s.revision++
	m.append(s, typ, now)
}

func (s *refSession) phase(now int64) sessionv1.Session_Phase {
	switch {
	case s.over != 0:
		return s.over
	case now >= s.expire:
		return sessionv1.Session_EXPIRED
	case s.expire-now < s.below:
		return sessionv1.Session_EXPIRING
	case now-s.last < s.window:
		return sessionv1.Session_ACTIVE
	default:
		return sessionv1.Session_IDLE
	}
}
