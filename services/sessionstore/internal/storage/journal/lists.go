package journal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Lists merge the pages of the store underneath with the sessions that have writes
// waiting, which that store does not know, or knows as they were. Both are in the
// same order, so a page is the part of it that both have read up to.

// place is where an entry of a list is: page tokens name places.
type entryPlace struct {
	shard int
	key   string
}

func (p entryPlace) before(o entryPlace) bool {
	return p.shard < o.shard || p.shard == o.shard && p.key < o.key
}

// liveSource is how a page token names the index of live sessions.
const liveSource = "0:"

// List pages through sessions. Those that are over come in the order of their
// purge, which replay changes: one that is replayed while a client pages through
// them may be listed twice.
func (s *Store) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	switch over := q.Phase == sessionv1.Session_ENDED || q.Phase == sessionv1.Session_EXPIRED; {
	case over && (s.depth.Load() > 0 || strings.HasPrefix(q.Token, pendingToken)):
		return s.listOver(ctx, q)
	case s.depth.Load() == 0:
		return s.Store.List(ctx, q)
	}
	left := s.waiting.left()
	own, age, err := s.listPending(ctx, q)
	if err != nil {
		return storage.SessionPage{}, err
	}
	below, err := s.Store.List(ctx, q)
	if err != nil {
		return storage.SessionPage{}, err
	}
	waits := map[string]bool{}
	for _, sess := range own.Sessions {
		waits[sess.GetId()] = true
	}
	others, err := s.current(ctx, q, below.Sessions, waits, s.waiting.leftSince(left))
	if err != nil {
		return storage.SessionPage{}, err
	}
	if len(own.Sessions) > 0 {
		s.opts.Stale(ctx, age)
	}
	return s.mergePages(q, own, storage.SessionPage{Sessions: others, Next: below.Next})
}

// listPending returns a page of the sessions that have writes waiting, and how old
// the oldest knowledge is that they are built on.
func (s *Store) listPending(ctx context.Context, q storage.ListQuery) (storage.SessionPage, time.Duration, error) {
	page, err := s.shadow.List(ctx, q)
	age := time.Duration(0)
	page.Sessions = slices.DeleteFunc(page.Sessions, func(sess *sessionv1.Session) bool {
		queue := s.waiting.of(sess.GetId())
		if queue != nil {
			age = max(age, s.age(queue))
		}
		return queue == nil // a write of it is just being judged, or it has just left
	})
	return page, age, err
}

// current returns sessions of the store underneath as they are now, without those
// in known. Those that have left the journal since they were listed may have been
// listed as they were before their writes were replayed.
func (s *Store) current(ctx context.Context, q storage.ListQuery, listed []*sessionv1.Session, known map[string]bool, gone departed) ([]*sessionv1.Session, error) {
	out := make([]*sessionv1.Session, 0, len(listed))
	var again []string
	for _, sess := range listed {
		switch id := sess.GetId(); {
		case known[id]:
		case gone.has(id) || s.waiting.has(id):
			again = append(again, id)
		default:
			out = append(out, sess)
		}
	}
	if len(again) == 0 {
		return out, nil
	}
	results, err := s.GetMany(ctx, again)
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		switch {
		case r.Err == nil:
			if storage.MatchesPhase(q.Phase, r.Session.GetPhase()) {
				out = append(out, r.Session)
			}
		case !errors.Is(r.Err, storage.ErrNotFound):
			return nil, r.Err // a part of a list would look like the whole
		}
	}
	return out, nil
}

// mergePages merges two pages of live sessions, up to the place that both have
// reached.
func (s *Store) mergePages(q storage.ListQuery, own, others storage.SessionPage) (storage.SessionPage, error) {
	byUser := q.User != "" && q.Project == ""
	at := func(sess *sessionv1.Session) entryPlace {
		shard, _ := sessionid.Shard(sess.GetId(), s.opts.Shards)
		first, second := sess.GetProject(), sess.GetUser()
		if byUser {
			first, second = second, first
		}
		return entryPlace{shard, first + "\x00" + second + "\x00" + sess.GetId()}
	}
	end, more, err := s.reached("sessions", q, own.Next, others.Next)
	if err != nil {
		return storage.SessionPage{}, err
	}
	all := slices.Concat(own.Sessions, others.Sessions)
	slices.SortFunc(all, func(a, b *sessionv1.Session) int { return compare(at(a), at(b)) })
	var page storage.SessionPage
	for _, sess := range all {
		if p := at(sess); more && end.before(p) {
			break
		} else if len(page.Sessions) == q.Limit {
			end, more = at(page.Sessions[q.Limit-1]), true
			break
		}
		page.Sessions = append(page.Sessions, sess)
	}
	if more {
		page.Next = storage.EncodePageToken("sessions", q, storage.PageToken{Shard: end.shard, After: liveSource + end.key})
	}
	return page, nil
}

func compare(a, b entryPlace) int {
	switch {
	case a.before(b):
		return -1
	case b.before(a):
		return 1
	default:
		return 0
	}
}

// reached returns the first of the places that the next pages begin after; more is
// false where there are no next pages.
func (s *Store) reached(kind string, q storage.ListQuery, tokens ...string) (end entryPlace, more bool, err error) {
	for _, token := range tokens {
		if token == "" {
			continue
		}
		q.Token = token
		at, err := storage.ParsePageToken(kind, q, s.opts.Shards)
		if err != nil {
			return end, false, err
		}
		if p := (entryPlace{at.Shard, strings.TrimPrefix(at.After, liveSource)}); !more || p.before(end) {
			end, more = p, true
		}
	}
	return end, more, nil
}

// pendingToken begins the tokens of pages of over sessions that have writes
// waiting. No other token begins with it.
const pendingToken = "~"

// listOver pages through sessions that are over: first through those that have
// writes waiting, then through those of the store underneath.
func (s *Store) listOver(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	token, pending := strings.CutPrefix(q.Token, pendingToken)
	if pending || q.Token == "" {
		mine := q
		mine.Token = token
		page, age, err := s.listPending(ctx, mine)
		if err != nil {
			return storage.SessionPage{}, err
		}
		if page.Next != "" || len(page.Sessions) > 0 {
			s.opts.Stale(ctx, age)
			if page.Next != "" {
				page.Next = pendingToken + page.Next
			} else {
				page.Next = storage.EncodePageToken("sessions", q, storage.PageToken{After: liveSource}) // the first of the others
			}
			return page, nil
		}
		q.Token = ""
	}
	left := s.waiting.left()
	page, err := s.Store.List(ctx, q)
	if err != nil {
		return storage.SessionPage{}, err
	}
	known := map[string]bool{}
	for _, sess := range page.Sessions {
		known[sess.GetId()] = s.waiting.has(sess.GetId())
	}
	page.Sessions, err = s.current(ctx, q, page.Sessions, known, s.waiting.leftSince(left))
	return page, err
}
