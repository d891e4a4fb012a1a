package journal

import (
	"context"
	"errors"
	"slices"
	"strings"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// ActiveUsers pages through users, as List does through sessions.
func (s *Store) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	if s.depth.Load() == 0 {
		return s.Store.ActiveUsers(ctx, q)
	}
	left := s.waiting.left()
	own, err := s.shadow.ActiveUsers(ctx, q)
	if err != nil {
		return storage.UserPage{}, err
	}
	below, err := s.Store.ActiveUsers(ctx, q)
	if err != nil {
		return storage.UserPage{}, err
	}
	end, more, err := s.reached("users", q, own.Next, below.Next)
	if err != nil {
		return storage.UserPage{}, err
	}
	gone := s.waiting.leftSince(left)
	known := map[string]bool{}
	all := below.Users
	for _, u := range own.Users { // not counted by the store underneath, where they come once
		all = append(all, &sessionv1.ActiveUser{Project: u.GetProject(), User: u.GetUser()})
	}
	all = slices.DeleteFunc(all, func(u *sessionv1.ActiveUser) bool {
		key := ownerKey(u.GetProject(), u.GetUser())
		twice := known[key]
		known[key] = true
		return twice || more && end.before(s.placeOfUser(u))
	})
	slices.SortFunc(all, func(a, b *sessionv1.ActiveUser) int { return compare(s.placeOfUser(a), s.placeOfUser(b)) })
	page := storage.UserPage{}
	if len(all) > q.Limit {
		all, end, more = all[:q.Limit], s.afterUser(all[q.Limit-1]), true
	}
	if page.Users, err = s.recountUsers(ctx, all, gone); err != nil {
		return storage.UserPage{}, err
	}
	if more {
		page.Next = storage.EncodePageToken("users", q, storage.PageToken{Shard: end.shard, After: end.key})
	}
	return page, nil
}

func (s *Store) placeOfUser(u *sessionv1.ActiveUser) entryPlace {
	return entryPlace{storage.UserShard(u.GetProject(), u.GetUser(), s.opts.Shards), u.GetProject() + "\x00" + u.GetUser() + "\x00"}
}

// afterUser is the place after every session of a user: \x01 sorts behind the \x00
// that ends its name.
func (s *Store) afterUser(u *sessionv1.ActiveUser) entryPlace {
	p := s.placeOfUser(u)
	p.key = strings.TrimSuffix(p.key, "\x00") + "\x01"
	return p
}

// recountUsers corrects the counts of those users who have sessions with writes
// waiting, or had some just now: the store underneath has counted these as it knows
// them. It leaves out users who have none. Counts need not be of one moment.
func (s *Store) recountUsers(ctx context.Context, users []*sessionv1.ActiveUser, gone departed) ([]*sessionv1.ActiveUser, error) {
	left := map[string][]string{}
	for id, owner := range gone.owners {
		left[owner] = append(left[owner], id)
	}
	var ids []string
	var of []int // the user of each
	for i, u := range users {
		own := append(s.waiting.ownedBy(u.GetProject(), u.GetUser()), left[ownerKey(u.GetProject(), u.GetUser())]...)
		slices.Sort(own)
		for _, id := range slices.Compact(own) {
			ids, of = append(ids, id), append(of, i)
		}
	}
	counted, live := make([]int32, len(users)), make([]int32, len(users))
	err := s.eachPending(ctx, ids, func(n int, below, now storage.SessionResult) {
		counted[of[n]] += countLive(below)
		live[of[n]] += countLive(now)
	})
	var out []*sessionv1.ActiveUser
	for i, u := range users {
		// No fewer than those that are known to live, which the store underneath may
		// not have counted yet.
		n := max(u.GetSessionCount()-counted[i]+live[i], live[i])
		if n > 0 {
			out = append(out, &sessionv1.ActiveUser{Project: u.GetProject(), User: u.GetUser(), SessionCount: n})
		}
	}
	return out, err
}

func countLive(r storage.SessionResult) int32 {
	if r.Err == nil && storage.MatchesPhase(sessionv1.Session_PHASE_UNSPECIFIED, r.Session.GetPhase()) {
		return 1
	}
	return 0
}

// pendingBatch is how many sessions eachPending reads at a time.
const pendingBatch = 500

// eachPending calls f for sessions as the store underneath knows them and as they
// are now. It fails where one of them cannot be read.
func (s *Store) eachPending(ctx context.Context, ids []string, f func(n int, below, now storage.SessionResult)) error {
	at := 0
	for some := range slices.Chunk(ids, pendingBatch) {
		below, err := s.Store.GetMany(ctx, some)
		if err != nil {
			return err
		}
		for i, r := range below {
			if r.Err != nil && !errors.Is(r.Err, storage.ErrNotFound) {
				return r.Err
			}
			now := r
			if own, _, ok := s.peek(ctx, some[i]); ok {
				now = own
			}
			f(at+i, r, now)
		}
		at += len(some)
	}
	return nil
}

// RevokeUser ends a user's sessions: those that have writes waiting by the journal,
// behind these writes, and the others at once.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	own := slices.DeleteFunc(s.waiting.ownedBy(project, user), func(id string) bool { return slices.Contains(except, id) })
	n, err := s.Store.RevokeUser(ctx, project, user, slices.Concat(except, own), reason)
	if err != nil {
		return n, err // nothing that waits was touched: the caller revokes again
	}
	s.awaitReplay(ctx, own...)
	var errs []error
	for _, id := range own {
		before, err := s.Get(ctx, id)
		if err == nil && !storage.MatchesPhase(sessionv1.Session_PHASE_UNSPECIFIED, before.GetPhase()) {
			continue
		}
		if err == nil {
			_, err = s.end(ctx, id, reason)
		}
		switch {
		case err == nil:
			n++
		case !errors.Is(err, storage.ErrNotFound):
			errs = append(errs, err)
		}
	}
	return n, errors.Join(errs...)
}

// Census counts sessions, as List lists them: those that have writes waiting are
// counted as they are here, and not as the store underneath knows them.
func (s *Store) Census(ctx context.Context) (storage.Census, error) {
	out, err := s.Store.Census(ctx)
	if err != nil {
		return out, err
	}
	err = s.eachPending(ctx, s.waiting.ids(), func(_ int, below, now storage.SessionResult) {
		if below.Err == nil {
			addToCensus(&out, below.Session, -1)
		}
		if now.Err == nil {
			addToCensus(&out, now.Session, 1)
		}
	})
	return out, err
}

func addToCensus(c *storage.Census, sess *sessionv1.Session, n int64) {
	if sess.GetEndTime() != nil {
		return
	}
	if c.ByPhase == nil {
		c.ByPhase = map[sessionv1.Session_Phase]int64{}
	}
	phase := sess.GetPhase()
	if c.ByPhase[phase] = max(0, c.ByPhase[phase]+n); c.ByPhase[phase] == 0 {
		delete(c.ByPhase, phase)
	}
	terms := lifetime.NewTerms(lifetime.Millis(sess.GetCreateTime()), sess.GetTtlPolicy())
	if (lifetime.State{Expire: lifetime.Millis(sess.GetExpireTime()), Count: sess.GetExtensionCount()}).Capped(terms) {
		c.AtCap = max(0, c.AtCap+n)
	}
}
