package storagetest

import (
	"errors"
	"fmt"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// replay applies writes that must be taken.
func (fx Fixture) replay(t TB, writes ...storage.Write) {
	t.Helper()
	for i, w := range writes {
		if err := fx.Store.Replay(t.Context(), w); err != nil {
			t.Fatalf("write %d, %+v: %v", i, w, err)
		}
	}
}

// refused checks that a write is refused with an error.
func (fx Fixture) refused(t TB, what string, w storage.Write, want error) {
	t.Helper()
	if err := fx.Store.Replay(t.Context(), w); !errors.Is(err, want) || errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// accepted describes a creation that was accepted at the session's create_time.
func accepted(in *sessionv1.Session, request string) storage.Write {
	return storage.Write{
		SessionID: in.GetId(), At: in.GetCreateTime().AsTime(), Create: &storage.CreateWrite{Session: in, RequestKey: request},
	}
}

func update(id string, at time.Time, u storage.Update) storage.Write {
	return storage.Write{SessionID: id, At: at, Update: &u}
}

func label(write, key string) storage.Update {
	return storage.Update{WriteID: write, SetLabels: map[string]string{key: write}}
}

func end(id string, at time.Time, reason string) storage.Write {
	return storage.Write{SessionID: id, At: at, End: &storage.EndWrite{Reason: reason}}
}

func remove(id string, at time.Time) storage.Write {
	return storage.Write{SessionID: id, At: at, Delete: true}
}

func appended(id string, at time.Time, events ...*sessionv1.Event) storage.Write {
	return storage.Write{SessionID: id, At: at, Append: events}
}

func activity(id string, at time.Time, a storage.Activity) storage.Write {
	a.SessionID = id
	return storage.Write{SessionID: id, At: at, Extend: &a}
}

// told is an event with the cursor that its sender was told.
func (fx Fixture) told(id, cursor string) *sessionv1.Event {
	return storage.WithCursor(fx.event(id, "input:text"), cursor)
}

// log lists a session's events with their cursors and times.
func (fx Fixture) log(t TB, id string) []*sessionv1.Event {
	t.Helper()
	p, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 1000})
	ok(t, err)
	return p.Events
}

// placed checks the last event of a session's log.
func (fx Fixture) placed(t TB, id, event string, at time.Time, cursor string) {
	t.Helper()
	log := fx.log(t, id)
	if len(log) == 0 {
		t.Fatalf("%s: the log is empty", event)
	}
	last := log[len(log)-1]
	equal(t, "last event", last.GetId(), event)
	equal(t, event+": time", last.GetTime().AsTime().UnixMilli(), at.UnixMilli())
	equal(t, event+": cursor", last.GetCursor(), cursor)
}

// seen is all that a reader can see of a session but its phase.
func (fx Fixture) seen(t TB, id string) string {
	t.Helper()
	s := storage.Shallow(fx.get(t, id))
	s.Phase = 0
	x, err := fx.Store.Explain(t.Context(), id)
	ok(t, err)
	return fmt.Sprint(s, fx.log(t, id), x)
}

// place is the cursor of a time.
func place(at time.Time, seq uint64) string {
	return storage.Cursor{Millis: at.UnixMilli(), Seq: seq}.String()
}

func replayCases() []Case {
	return append(append(replayKinds(), replayOrder()...), writeIDCases()...)
}

func replayKinds() []Case {
	return []Case{
		{"replay/a create keeps its times", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy())
			in.Labels = map[string]string{"a": "b"}
			fx.pass(7)
			fx.replay(t, accepted(in, ""))
			got := fx.get(t, in.GetId())
			equal(t, "phase", got.GetPhase(), sessionv1.Session_EXPIRED)
			equal(t, "revision", got.GetRevision(), 1)
			equal(t, "label", got.GetLabels()["a"], "b")
			same(t, "create_time", got.GetCreateTime(), in.GetCreateTime())
			same(t, "expire_time", got.GetExpireTime(), in.GetExpireTime())
			at := in.GetCreateTime().AsTime()
			fx.placed(t, in.GetId(), storage.TypeCreated, at, place(at, 0))
			fx.extend(t, in.GetId(), "e", fx.since(in, 5.9))
			equal(t, "extensions by activity before its deadline", fx.get(t, in.GetId()).GetExtensionCount(), 1)
			users, err := fx.Store.ActiveUsers(t.Context(), storage.ListQuery{Limit: 10})
			ok(t, err)
			equal(t, "active users", len(users.Users), 1)
		}},
		{"replay/a create whose deadline is long past", func(t TB, fx Fixture) {
			p := fx.policy()
			then := fx.Now().Add(-30 * time.Hour).UnixMilli()
			in := fx.fresh("acme", "ann", "", p)
			in.CreateTime, in.UpdateTime, in.LastActivityTime = lifetime.Time(then), lifetime.Time(then), lifetime.Time(then)
			in.ExpireTime, in.CapTime = lifetime.Time(lifetime.Deadline(then, p)), lifetime.Time(lifetime.NewTerms(then, p).Cap)
			fx.replay(t, accepted(in, "r"))
			same(t, "expire_time", fx.get(t, in.GetId()).GetExpireTime(), in.GetExpireTime())
			equal(t, "expired", fx.sweep(t).Expired, 1)
			list(t, "log", fx.types(t, in.GetId()), storage.TypeCreated, storage.TypeExpired)
		}},
		{"replay/a request key stays with the session that has it", func(t TB, fx Fixture) {
			first, _, err := fx.Store.Create(t.Context(), fx.fresh("acme", "ann", "r", fx.policy(long)), "r")
			ok(t, err)
			late := fx.fresh("acme", "ann", "r", fx.policy(long))
			fx.replay(t, accepted(late, "r"))
			equal(t, "stored all the same", fx.get(t, late.GetId()).GetUser(), "ann")
			ok(t, fx.Store.Delete(t.Context(), late.GetId()))
			got, existed, err := fx.Store.Create(t.Context(), fx.fresh("acme", "ann", "r", fx.policy(long)), "r")
			ok(t, err)
			equal(t, "existed", existed, true)
			equal(t, "the key's session", got.GetId(), first.GetId())

			fresh := fx.fresh("acme", "ann", "q", fx.policy(long))
			fx.replay(t, accepted(fresh, "q"))
			got, existed, err = fx.Store.Create(t.Context(), fx.fresh("acme", "ann", "q", fx.policy(long)), "q")
			ok(t, err)
			equal(t, "existed", existed, true)
			equal(t, "a free key's session", got.GetId(), fresh.GetId())
		}},
		{"replay/an update as of then", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.pass(7)
			at := fx.since(s, 5.5)
			fx.replay(t, update(id, at, label("w", "a")))
			got := fx.get(t, id)
			equal(t, "label", got.GetLabels()["a"], "w")
			equal(t, "update_time", got.GetUpdateTime().AsTime(), at)
			equal(t, "revision", got.GetRevision(), 2)
			u := label("x", "b")
			u.IfRevision = 1
			fx.refused(t, "another revision", update(id, at, u), storage.ErrConflict)
			u.IfRevision = 2
			fx.replay(t, update(id, at, u))
			fx.refused(t, "at the deadline", update(id, fx.since(s, 6), label("y", "c")), storage.ErrEnded)
			fx.refused(t, "none", update(sessionid.New(1), at, label("z", "d")), storage.ErrNotFound)
			u = label("m", "e")
			u.MaxLabels = 2
			var invalid *storage.InvalidError
			if err := fx.Store.Replay(t.Context(), update(id, at, u)); !errors.As(err, &invalid) {
				t.Errorf("too many labels: %v", err)
			}
			equal(t, "revision", fx.get(t, id).GetRevision(), 3)
		}},
		{"replay/an end as of then", func(t TB, fx Fixture) {
			id, late := fx.create(t, "acme", "ann"), fx.create(t, "acme", "bob")
			s := fx.get(t, id)
			fx.pass(12)
			at := fx.since(s, 0.5)
			fx.replay(t, end(id, at, "done"))
			got := fx.get(t, id)
			equal(t, "phase", got.GetPhase(), sessionv1.Session_ENDED)
			equal(t, "reason", got.GetEndReason(), "done")
			equal(t, "end_time", got.GetEndTime().AsTime(), at)
			fx.placed(t, id, storage.TypeEnded, at, place(at, 0))
			fx.sweep(t)
			equal(t, "kept for its retention", fx.get(t, id).GetPhase(), sessionv1.Session_ENDED)
			before := fx.seen(t, id)
			fx.replay(t, end(id, at.Add(fx.Unit), "again"))
			equal(t, "ended again", fx.seen(t, id), before)
			before = fx.seen(t, late)
			fx.replay(t, end(late, fx.since(fx.get(t, late), 6), "too late"))
			equal(t, "ended after its deadline", fx.seen(t, late), before)
			fx.refused(t, "none", end(sessionid.New(1), at, ""), storage.ErrNotFound)
		}},
		{"replay/a delete does not mind", func(t TB, fx Fixture) {
			before := fx.entries()
			id := fx.create(t, "acme", "ann", long)
			fx.append(t, id, "1")
			fx.replay(t, remove(id, fx.Now()), remove(id, fx.Now()), remove(sessionid.New(1), fx.Now()), remove("nonsense", fx.Now()))
			if _, err := fx.Store.Get(t.Context(), id); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("got %v, want not found", err)
			}
			equal(t, "entries", fx.entries(), before)
		}},
		{"replay/activity as of then", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.pass(7)
			at := fx.since(s, 1.5)
			fx.replay(t, activity(id, at, storage.Activity{Kind: "input", EventID: "1"}))
			got := fx.get(t, id)
			equal(t, "without a time it was then", got.GetLastActivityTime().AsTime(), at)
			equal(t, "expire_time", got.GetExpireTime().AsTime(), fx.since(s, 10))
			equal(t, "extensions", got.GetExtensionCount(), 1)
			fx.placed(t, id, storage.TypeExtended+"/1", at, place(at, 0))
			// Nothing lies in the future of when it was accepted.
			at = fx.since(s, 1.7)
			fx.replay(t, activity(id, at, storage.Activity{Time: fx.since(s, 9), Kind: "input", EventID: "2"}))
			equal(t, "clamped", fx.get(t, id).GetLastActivityTime().AsTime(), at)
			equal(t, "extensions", fx.get(t, id).GetExtensionCount(), 1)
			before := fx.get(t, id)
			fx.replay(t, activity(id, fx.since(s, 11), storage.Activity{Kind: "input", EventID: "3"}))
			same(t, "what came too late", fx.get(t, id), before)
			fx.refused(t, "none", activity(sessionid.New(1), at, storage.Activity{}), storage.ErrNotFound)
			fx.replay(t, end(id, at, ""))
			fx.refused(t, "ended", activity(id, at, storage.Activity{}), storage.ErrEnded)
		}},
		{"replay/events as of then", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.pass(7)
			fx.replay(t, appended(id, fx.since(s, 5), fx.told("1", "")))
			equal(t, "last", fx.log(t, id)[1].GetCursor(), place(fx.since(s, 5), 0))
			fx.refused(t, "at the deadline", appended(id, fx.since(s, 6), fx.told("2", "")), storage.ErrEnded)
			fx.refused(t, "none", appended(sessionid.New(1), fx.since(s, 5), fx.told("2", "")), storage.ErrNotFound)
			equal(t, "events", len(fx.log(t, id)), 2)
		}},
		{"replay/an empty write is refused", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			if err := fx.Store.Replay(t.Context(), storage.Write{SessionID: id, At: fx.Now()}); err == nil || errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		}},
	}
}

// everything is one accepted write of each kind but the end and the delete.
func (fx Fixture) everything(in *sessionv1.Session) []storage.Write {
	id := in.GetId()
	return []storage.Write{
		accepted(in, "r"),
		update(id, fx.since(in, 0.2), label("w1", "a")),
		appended(id, fx.since(in, 0.4), fx.event("1", "input:text"), fx.event("2", "input:text")),
		activity(id, fx.since(in, 1.2), storage.Activity{Time: fx.since(in, 1.1), Kind: "input", EventID: "1"}),
		activity(id, fx.since(in, 1.3), storage.Activity{Kind: "chat"}),
		update(id, fx.since(in, 1.4), label("w2", "b")),
	}
}

func replayOrder() []Case {
	return []Case{
		{"replay/the same again changes nothing", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "r", fx.policy())
			writes := fx.everything(in)
			r := fx.open(t, "g", "c")
			fx.pass(1.5)
			fx.replay(t, writes...)
			fx.drain(t, r, 4)
			before := fx.seen(t, in.GetId())
			fx.replay(t, writes...)
			fx.replay(t, writes[3], writes[4], writes[2], writes[1])
			equal(t, "all of it again", fx.seen(t, in.GetId()), before)
			fx.quiet(t, r)
			fx.replay(t, end(in.GetId(), fx.since(in, 1.45), "done"))
			fx.drain(t, r, 1)
			before = fx.seen(t, in.GetId())
			fx.replay(t, writes[0], writes[1], end(in.GetId(), fx.since(in, 1.45), "done"))
			equal(t, "and once it is over", fx.seen(t, in.GetId()), before)
			fx.quiet(t, r)
			ok(t, r.Close())
		}},
		{"replay/what was applied before is not applied again", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "r", fx.policy())
			writes := fx.everything(in)
			id := in.GetId()
			_, _, err := fx.Store.Create(t.Context(), in, "r")
			ok(t, err)
			fx.pass(1.5)
			_, err = fx.Store.Update(t.Context(), id, *writes[1].Update)
			ok(t, err)
			_, err = fx.Store.Append(t.Context(), id, writes[2].Append)
			ok(t, err)
			_, err = fx.Store.Extend(t.Context(), []storage.Activity{*writes[3].Extend})
			ok(t, err)
			before := fx.seen(t, id)
			fx.replay(t, writes[:4]...)
			equal(t, "again", fx.seen(t, id), before)
			_, err = fx.Store.End(t.Context(), id, "done")
			ok(t, err)
			before = fx.seen(t, id)
			fx.replay(t, end(id, fx.since(in, 1.5), "done"))
			equal(t, "ended again", fx.seen(t, id), before)
		}},
		{"replay/nothing is revived", func(t TB, fx Fixture) {
			for _, c := range []struct {
				name string
				stop func(id string) error
				want error
			}{
				{"ended", func(id string) error { _, err := fx.Store.End(t.Context(), id, ""); return err }, storage.ErrEnded},
				{"swept", func(string) error { fx.pass(7); _, err := fx.Store.Sweep(t.Context()); return err }, storage.ErrEnded},
				{"deleted", func(id string) error { return fx.Store.Delete(t.Context(), id) }, storage.ErrNotFound},
				{"deleted by a replay", func(id string) error { return fx.Store.Replay(t.Context(), remove(id, fx.Now())) }, storage.ErrNotFound},
			} {
				in := fx.fresh("acme", c.name, "", fx.policy())
				_, _, err := fx.Store.Create(t.Context(), in, "")
				ok(t, err)
				ok(t, c.stop(in.GetId()))
				fx.replay(t, accepted(in, ""))
				at := fx.since(in, 0.5)
				fx.refused(t, c.name+": update", update(in.GetId(), at, label("w", "a")), c.want)
				fx.refused(t, c.name+": events", appended(in.GetId(), at, fx.told("1", "")), c.want)
				fx.refused(t, c.name+": activity", activity(in.GetId(), at, storage.Activity{}), c.want)
				got, err := fx.Store.Get(t.Context(), in.GetId())
				if errors.Is(c.want, storage.ErrNotFound) != errors.Is(err, storage.ErrNotFound) || err == nil && got.GetEndTime() == nil {
					t.Errorf("%s: %v %v", c.name, got, err)
				}
			}
			// A delete that came another way before the create it was meant for.
			in := fx.fresh("acme", "eve", "", fx.policy())
			fx.replay(t, remove(in.GetId(), fx.Now()), accepted(in, ""))
			if _, err := fx.Store.Get(t.Context(), in.GetId()); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("deleted before it was created: %v", err)
			}
		}},
		{"replay/cursors are those that were told", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy(long))
			id, t0 := in.GetId(), in.GetCreateTime().AsTime()
			fx.replay(t, accepted(in, ""))
			t1, t2 := t0.Add(10*time.Millisecond), t0.Add(20*time.Millisecond)
			fx.replay(t, appended(id, t1, fx.told("1", place(t1, 3)), fx.told("2", place(t1, 7))))
			fx.placed(t, id, "2", fx.log(t, id)[2].GetTime().AsTime(), place(t1, 7))
			fx.replay(t, appended(id, t2, fx.told("3", place(t1, 2)), fx.told("4", place(t1, 8)), fx.told("5", "")))
			var cursors []string
			for _, e := range fx.log(t, id) {
				cursors = append(cursors, e.GetCursor())
			}
			list(t, "cursors", cursors, place(t0, 0), place(t1, 3), place(t1, 7), place(t1, 8), place(t1, 9), place(t2, 0))
			// One of the store's own, when the log has gone beyond its time.
			fx.replay(t, end(id, t1, ""))
			fx.placed(t, id, storage.TypeEnded, t1, place(t2, 1))
		}},
		{"replay/the feed has it behind what is there", func(t TB, fx Fixture) {
			r := fx.open(t, "g", "c")
			id := fx.create(t, "acme", "ann", long)
			then := fx.Now()
			fx.pass(1)
			fx.append(t, id, "1")
			fx.replay(t, appended(id, then, fx.told("2", "")), end(id, then.Add(time.Millisecond), ""), remove(id, then.Add(2*time.Millisecond)))
			got := fx.drain(t, r, 5)
			list(t, "entries", names(got), storage.TypeCreated, "1", "2", storage.TypeEnded, storage.TypeDeleted)
			for i, e := range got[2:] {
				if e.GetAppendTime().AsTime().Before(got[1].GetAppendTime().AsTime()) {
					t.Errorf("entry %d was appended before what is in front of it: %v", i+2, e)
				}
			}
			equal(t, "deleted at", got[4].GetEvent().GetTime().AsTime().UnixMilli(), then.Add(2*time.Millisecond).UnixMilli())
			fx.quiet(t, r)
			ok(t, r.Close())
		}},
		{"replay/sweeps wait for its events, and no longer than settle_max", func(t TB, fx Fixture) {
			r := fx.open(t, storage.ActivityGroup, "c")
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			settled := func(n int) {
				entries := fx.drain(t, r, n)
				last := entries[len(entries)-1]
				ok(t, r.Ack(t.Context(), []storage.FeedAck{{Shard: int(last.GetShard()), Cursor: last.GetCursor()}}))
			}
			settled(1)
			fx.pass(7)
			fx.replay(t, appended(id, fx.since(s, 5), fx.told("1", "")))
			fx.pass(1)
			res := fx.sweep(t)
			equal(t, "expired before its activity was looked at", res.Expired, 0)
			equal(t, "held", res.Held, 1)
			// The group finds that it is activity.
			fx.extend(t, id, "1", fx.since(s, 5))
			equal(t, "extensions", fx.get(t, id).GetExtensionCount(), 1)
			settled(2)
			fx.pass(3) // past the new deadline
			equal(t, "expired in the end", fx.sweep(t).Expired, 1)

			id = fx.create(t, "acme", "ann")
			s = fx.get(t, id)
			fx.pass(7)
			fx.replay(t, appended(id, fx.since(s, 5), fx.told("1", "")))
			equal(t, "expired at once", fx.sweep(t).Expired, 0)
			fx.pass(20)
			equal(t, "expired after settle_max", fx.sweep(t).Expired, 1)
			ok(t, r.Close())
		}},
	}
}

func writeIDCases() []Case {
	return []Case{
		{"update/the same write is the same update", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			first := label("w", "a")
			first.IfRevision = 1
			_, err := fx.Store.Update(t.Context(), id, first)
			ok(t, err)
			for n := range storage.MaxWriteIDs - 1 {
				got, err := fx.Store.Update(t.Context(), id, label(fmt.Sprint("w", n), "a"))
				ok(t, err)
				equal(t, "revision", got.GetRevision(), int64(n)+3)
			}
			before := fx.get(t, id)
			got, err := fx.Store.Update(t.Context(), id, first)
			ok(t, err)
			same(t, "again", got, before)
			_, err = fx.Store.End(t.Context(), id, "")
			ok(t, err)
			got, err = fx.Store.Update(t.Context(), id, first)
			ok(t, err)
			same(t, "once it has ended", got, fx.get(t, id))
			if _, err := fx.Store.Update(t.Context(), id, label("other", "a")); !errors.Is(err, storage.ErrEnded) {
				t.Errorf("another: %v", err)
			}
		}},
		{"update/updates without a name are different", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			for n := range 3 {
				got, err := fx.Store.Update(t.Context(), id, storage.Update{SetLabels: map[string]string{"n": fmt.Sprint(n)}})
				ok(t, err)
				equal(t, "label", got.GetLabels()["n"], fmt.Sprint(n))
				equal(t, "revision", got.GetRevision(), int64(n)+2)
			}
		}},
	}
}
