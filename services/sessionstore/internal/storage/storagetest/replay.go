package storagetest

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

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
		{"replay/several updates as one", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			named := func(id string, u storage.Update) *storage.Update { u.WriteID = id; return &u }
			set := func(k, v string) storage.Update { return storage.Update{SetLabels: map[string]string{k: v}} }
			all := []*storage.Update{
				named("w1", set("a", "1")),
				named("w2", storage.Update{IfRevision: 2, SetLabels: map[string]string{"a": "2", "b": "2"}, SetData: true, Data: structpb.NewStringValue("old")}),
				named("w3", storage.Update{DeleteLabels: []string{"b"}, SetData: true, Data: structpb.NewStringValue("new")}),
				named("w4", set("c", "4")),
			}
			at := fx.Now()
			write := storage.Write{SessionID: id, At: at, Update: all[3], Earlier: all[:3]}
			fx.pass(1)
			for range 2 { // the same again changes nothing
				fx.replay(t, write)
				got := fx.get(t, id)
				equal(t, "revision", got.GetRevision(), 5)
				equal(t, "labels", fmt.Sprint(got.GetLabels()), "map[a:2 c:4]")
				equal(t, "data", got.GetData().GetStringValue(), "new")
				equal(t, "update_time", got.GetUpdateTime().AsTime().UnixMilli(), at.UnixMilli())
			}
			for _, u := range all {
				fx.replay(t, storage.Write{SessionID: id, At: at, Update: u})
			}
			equal(t, "revision once each is repeated", fx.get(t, id).GetRevision(), 5)
			// What was applied before by itself is left out.
			fx.replay(t, storage.Write{SessionID: id, At: at, Update: named("w5", set("d", "5"))})
			fx.replay(t, storage.Write{SessionID: id, At: at, Update: named("w6", set("d", "6")), Earlier: []*storage.Update{named("w5", set("d", "5"))}})
			equal(t, "revision", fx.get(t, id).GetRevision(), 7)
			equal(t, "label", fx.get(t, id).GetLabels()["d"], "6")
			// A revision that is not there is a conflict, wherever it is expected.
			err := fx.Store.Replay(t.Context(), storage.Write{SessionID: id, At: at, Update: named("w8", set("d", "8")), Earlier: []*storage.Update{named("w7", storage.Update{IfRevision: 3, SetLabels: map[string]string{"d": "7"}})}})
			if !errors.Is(err, storage.ErrConflict) {
				t.Errorf("another revision: %v", err)
			}
			equal(t, "label", fx.get(t, id).GetLabels()["d"], "6")
		}},
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
		{"replay/what is no write is refused", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			both := end(id, fx.Now(), "")
			both.Delete = true
			for name, w := range map[string]storage.Write{
				"nothing": {SessionID: id, At: fx.Now()}, "two things": both, "no time": remove(id, time.Time{}),
				"another session": {SessionID: id, At: fx.Now(), Create: &storage.CreateWrite{Session: fx.fresh("acme", "ann", "", fx.policy())}},
				"no session":      {SessionID: "nonsense", At: fx.Now(), Create: &storage.CreateWrite{Session: &sessionv1.Session{Id: "nonsense"}}},
			} {
				var invalid *storage.InvalidError
				if err := fx.Store.Replay(t.Context(), w); !errors.As(err, &invalid) {
					t.Errorf("%s: got %v", name, err)
				}
			}
			equal(t, "phase", fx.get(t, id).GetPhase(), sessionv1.Session_ACTIVE)
		}},
	}
}
