package storagetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	extended  = sessionv1.ExtendTTLResponse_EXTENDED
	notNeeded = sessionv1.ExtendTTLResponse_NOT_NEEDED
	capped    = sessionv1.ExtendTTLResponse_CAPPED
	tooLate   = sessionv1.ExtendTTLResponse_TOO_LATE
	tooSoon   = sessionv1.ExtendTTLResponse_TOO_SOON
	over      = sessionv1.ExtendTTLResponse_ENDED
	notFound  = sessionv1.ExtendTTLResponse_NOT_FOUND
)

// since is a time after the session's creation, in units.
func (fx Fixture) since(s *sessionv1.Session, units float64) time.Time {
	return s.GetCreateTime().AsTime().Add(time.Duration(units * float64(fx.Unit)))
}

func ttlCases() []Case {
	return []Case{
		{"extend/to the cap and not beyond", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			equal(t, "enough left", fx.extend(t, id, "0", fx.since(s, 0.5)).GetOutcome(), notNeeded)
			fx.pass(5.5)
			r := fx.extend(t, id, "1", fx.since(s, 2))
			equal(t, "first", r.GetOutcome(), extended)
			same(t, "before", r.GetBefore().GetExpireTime(), s.GetExpireTime())
			equal(t, "after", r.GetAfter().GetExpireTime().AsTime(), fx.since(s, 10))
			equal(t, "count", r.GetAfter().GetExtensionCount(), 1)
			if r.GetReason() == "" || r.GetAfter().GetPolicy() == nil || r.GetAfter().GetMaxExtensions() != 2 {
				t.Errorf("the answer says too little: %v", r)
			}
			equal(t, "second", fx.extend(t, id, "2", fx.since(s, 5.4)).GetOutcome(), extended)
			got := fx.get(t, id)
			equal(t, "deadline", got.GetExpireTime().AsTime(), fx.since(s, 14))
			equal(t, "revision", got.GetRevision(), 3)
			equal(t, "last activity", got.GetLastActivityTime().AsTime(), fx.since(s, 5.4))
			fx.pass(5)
			equal(t, "third", fx.extend(t, id, "3", fx.since(s, 10)).GetOutcome(), capped)
			equal(t, "last activity when capped", fx.get(t, id).GetLastActivityTime().AsTime(), fx.since(s, 10))
			equal(t, "session:extended", count(fx.types(t, id), storage.TypeExtended), 2)
		}},
		{"extend/the same again never extends twice", func(t TB, fx Fixture) {
			for _, strategy := range []sessionv1.TTLPolicy_Strategy{sessionv1.TTLPolicy_BELOW_THRESHOLD, sessionv1.TTLPolicy_ONCE_PER_INTERVAL, sessionv1.TTLPolicy_EVERY_ACTIVITY} {
				id := fx.create(t, "acme", "ann", func(p *sessionv1.TTLPolicy) {
					p.Strategy, p.MinInterval = strategy, durationpb.New(0)
					// Still below the threshold after an extension.
					p.ExtendBelow = durationpb.New(100 * fx.Unit)
				})
				s := fx.get(t, id)
				fx.pass(1)
				equal(t, strategy.String(), fx.extend(t, id, "e", fx.since(s, 0.9)).GetOutcome(), extended)
				for range 3 {
					equal(t, strategy.String()+" again", fx.extend(t, id, "e", fx.since(s, 0.9)).GetOutcome(), notNeeded)
				}
				equal(t, "count", fx.get(t, id).GetExtensionCount(), 1)
			}
		}},
		{"extend/one of many at once", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.pass(2)
			n := 0
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					r := fx.extend(t, id, "e", fx.since(s, 1.9))
					mu.Lock()
					defer mu.Unlock()
					if r.GetOutcome() == extended {
						n++
					}
				})
			}
			wg.Wait()
			equal(t, "extended", n, 1)
		}},
		{"extend/strategies", func(t TB, fx Fixture) {
			interval := fx.create(t, "acme", "ann", func(p *sessionv1.TTLPolicy) { p.Strategy = sessionv1.TTLPolicy_ONCE_PER_INTERVAL })
			every := fx.create(t, "acme", "ann", func(p *sessionv1.TTLPolicy) { p.Strategy = sessionv1.TTLPolicy_EVERY_ACTIVITY })
			si, se := fx.get(t, interval), fx.get(t, every)
			fx.pass(5)
			equal(t, "interval: first", fx.extend(t, interval, "1", fx.since(si, 0.5)).GetOutcome(), extended)
			equal(t, "interval: too soon", fx.extend(t, interval, "2", fx.since(si, 1)).GetOutcome(), tooSoon)
			equal(t, "interval: over", fx.extend(t, interval, "3", fx.since(si, 4)).GetOutcome(), extended)
			at := fx.since(se, 1)
			equal(t, "every: a", fx.extend(t, every, "a", at).GetOutcome(), extended)
			equal(t, "every: b at the same time", fx.extend(t, every, "b", at).GetOutcome(), extended)
			equal(t, "every: a again", fx.extend(t, every, "a", at).GetOutcome(), notNeeded)
			equal(t, "every: c", fx.extend(t, every, "c", at).GetOutcome(), capped)
		}},
		{"extend/at most to max_lifetime", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", func(p *sessionv1.TTLPolicy) { p.MaxLifetime = durationpb.New(9 * fx.Unit) })
			s := fx.get(t, id)
			equal(t, "cap", s.GetCapTime().AsTime(), fx.since(s, 9))
			fx.pass(3)
			equal(t, "first", fx.extend(t, id, "1", fx.since(s, 2.9)).GetOutcome(), extended)
			equal(t, "deadline", fx.get(t, id).GetExpireTime().AsTime(), fx.since(s, 9))
			fx.pass(3)
			equal(t, "second", fx.extend(t, id, "2", fx.since(s, 5.9)).GetOutcome(), capped)
		}},
		{"extend/judged by event time", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.pass(7)
			equal(t, "phase past the deadline", fx.get(t, id).GetPhase(), sessionv1.Session_EXPIRED)
			r := fx.extend(t, id, "late", fx.since(s, 6.5))
			equal(t, "activity after the deadline", r.GetOutcome(), tooLate)
			same(t, "last activity when too late", fx.get(t, id).GetLastActivityTime(), s.GetLastActivityTime())
			equal(t, "activity before it", fx.extend(t, id, "early", fx.since(s, 5.9)).GetOutcome(), extended)
			if p := fx.get(t, id).GetPhase(); p == sessionv1.Session_EXPIRED {
				t.Errorf("not revived: %v", p)
			}
		}},
		{"extend/future times are now, and time never goes back", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			s := fx.get(t, id)
			fx.pass(1)
			equal(t, "future", fx.extend(t, id, "1", fx.since(s, 500)).GetOutcome(), notNeeded)
			got := fx.get(t, id)
			if at := got.GetLastActivityTime().AsTime(); at.After(fx.Now()) || !at.After(fx.since(s, 0.5)) {
				t.Errorf("last activity %v is not now", at)
			}
			fx.extend(t, id, "2", fx.since(s, 0.1))
			same(t, "last activity", fx.get(t, id).GetLastActivityTime(), got.GetLastActivityTime())
			equal(t, "revision", fx.get(t, id).GetRevision(), 1)
			fx.pass(1)
			fx.extend(t, id, "3", time.Time{})
			if !fx.get(t, id).GetLastActivityTime().AsTime().After(got.GetLastActivityTime().AsTime()) {
				t.Errorf("an activity without a time is not now")
			}
		}},
		{"extend/answers per item, in order", func(t TB, fx Fixture) {
			ended := fx.create(t, "acme", "ann", long)
			_, err := fx.Store.End(t.Context(), ended, "")
			ok(t, err)
			live := fx.create(t, "acme", "bob", long)
			items := []storage.Activity{{SessionID: "nonsense"}, {SessionID: live}, {SessionID: ended}, {SessionID: sessionid.New(2)}, {SessionID: live}}
			res, err := fx.Store.Extend(t.Context(), items)
			ok(t, err)
			var got []sessionv1.ExtendTTLResponse_Outcome
			for _, r := range res {
				ok(t, r.Err)
				got = append(got, r.Response.GetOutcome())
			}
			want := []sessionv1.ExtendTTLResponse_Outcome{notFound, notNeeded, over, notFound, notNeeded}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if res[0].Response.GetBefore() != nil || !strings.Contains(res[0].Response.GetReason(), "no such session") {
				t.Errorf("not found: %v", res[0].Response)
			}
		}},
		{"phase/by time alone", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", func(p *sessionv1.TTLPolicy) { p.ExtendBelow = durationpb.New(2 * fx.Unit) })
			for _, step := range []struct {
				pass float64
				want sessionv1.Session_Phase
			}{{0.5, sessionv1.Session_ACTIVE}, {2, sessionv1.Session_IDLE}, {2, sessionv1.Session_EXPIRING}, {2, sessionv1.Session_EXPIRED}} {
				fx.pass(step.pass)
				equal(t, fmt.Sprintf("after %v more", step.pass), fx.get(t, id).GetPhase(), step.want)
			}
		}},
	}
}

func sweepCases() []Case {
	return []Case{
		{"sweep/warns once per deadline, expires once", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.sweep(t)
			equal(t, "warned at once", count(fx.types(t, id), storage.TypeExpiring), 0)
			fx.pass(1.5)
			for range 3 {
				fx.sweep(t)
			}
			equal(t, "warned", count(fx.types(t, id), storage.TypeExpiring), 1)
			equal(t, "extended", fx.extend(t, id, "e", fx.since(s, 1.4)).GetOutcome(), extended)
			fx.pass(4)
			for range 3 {
				fx.sweep(t)
			}
			equal(t, "warned of the new deadline", count(fx.types(t, id), storage.TypeExpiring), 2)
			equal(t, "still alive", count(fx.types(t, id), storage.TypeExpired), 0)
			fx.pass(5)
			for range 3 {
				fx.sweep(t)
			}
			types := fx.types(t, id)
			equal(t, "expired", count(types, storage.TypeExpired), 1)
			equal(t, "last", types[len(types)-1], storage.TypeExpired)
			got := fx.get(t, id)
			equal(t, "phase", got.GetPhase(), sessionv1.Session_EXPIRED)
			equal(t, "extensions", got.GetExtensionCount(), 1)
			if got.GetEndTime() == nil {
				t.Errorf("no end_time")
			}
			equal(t, "then", fx.extend(t, id, "f", fx.since(s, 5)).GetOutcome(), over)
		}},
		{"sweep/from two replicas, once", func(t TB, fx Fixture) {
			other := fx.Store
			if fx.Replica != nil {
				other = fx.Replica()
			}
			var ids []string
			for n := range 60 {
				ids = append(ids, fx.create(t, "acme", fmt.Sprint(n)))
			}
			fx.pass(6.5)
			var wg sync.WaitGroup
			var mu sync.Mutex
			total := 0
			for _, s := range []storage.Store{fx.Store, other, fx.Store, other} {
				wg.Go(func() {
					r, err := s.Sweep(t.Context())
					mu.Lock()
					defer mu.Unlock()
					total += r.Expired
					if err != nil {
						t.Errorf("%v", err)
					}
				})
			}
			wg.Wait()
			equal(t, "expired", total, len(ids))
			for _, id := range ids {
				equal(t, "session:expired", count(fx.types(t, id), storage.TypeExpired), 1)
			}
		}},
		{"sweep/waits for the activity group, and no longer than settle_max", func(t TB, fx Fixture) {
			r, err := fx.Store.OpenFeed(t.Context(), storage.ActivityGroup, "c")
			ok(t, err)
			first := fx.create(t, "acme", "ann")
			second := fx.create(t, "acme", "bob")
			fx.pass(6.5)
			res := fx.sweep(t)
			equal(t, "expired while the feed is behind", res.Expired, 0)
			equal(t, "held", res.Held, 2)
			// The group has read and acknowledged all of the first one's shard.
			shard, _ := sessionid.Shard(first, Shards)
			entries := fx.drain(t, r, 2)
			last := ""
			for _, e := range entries {
				if int(e.GetShard()) == shard {
					last = e.GetCursor()
				}
			}
			ok(t, r.Ack(t.Context(), []storage.FeedAck{{Shard: shard, Cursor: last}}))
			fx.sweep(t)
			equal(t, "first", count(fx.types(t, first), storage.TypeExpired), 1)
			if other, _ := sessionid.Shard(second, Shards); other == shard {
				return
			}
			equal(t, "second", count(fx.types(t, second), storage.TypeExpired), 0)
			fx.pass(20)
			fx.sweep(t)
			equal(t, "second after settle_max", count(fx.types(t, second), storage.TypeExpired), 1)
		}},
		{"sweep/waits for no other group", func(t TB, fx Fixture) {
			_, err := fx.Store.OpenFeed(t.Context(), "onlookers", "c")
			ok(t, err)
			id := fx.create(t, "acme", "ann")
			fx.pass(6.5)
			fx.sweep(t)
			equal(t, "expired", count(fx.types(t, id), storage.TypeExpired), 1)
		}},
		{"sweep/purges after retention, and leaves nothing", func(t TB, fx Fixture) {
			before := fx.entries()
			ended, _, err := fx.Store.Create(t.Context(), fx.fresh("acme", "ann", "r", fx.policy(long)), "r")
			ok(t, err)
			fx.append(t, ended.GetId(), "1", "2")
			_, err = fx.Store.End(t.Context(), ended.GetId(), "")
			ok(t, err)
			expired := fx.create(t, "acme", "bob")
			fx.pass(7)
			equal(t, "expired", fx.sweep(t).Expired, 1)
			equal(t, "readable", fx.get(t, ended.GetId()).GetPhase(), sessionv1.Session_ENDED)
			fx.pass(11)
			equal(t, "purged", fx.sweep(t).Purged, 2)
			for _, id := range []string{ended.GetId(), expired} {
				if _, err := fx.Store.Get(t.Context(), id); err == nil {
					t.Errorf("still there")
				}
			}
			equal(t, "entries", fx.entries(), before)
		}},
	}
}
