package storagetest

import (
	"errors"
	"fmt"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

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
			in, _, err := fx.Store.Create(t.Context(), in, "r")
			ok(t, err)
			writes := fx.everything(in)
			id := in.GetId()
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
		{"replay/lifecycle events have the cursor that was told", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy())
			id, t0 := in.GetId(), in.GetCreateTime().AsTime()
			ahead := func(n int) time.Time { return t0.Add(time.Hour + time.Duration(n)*time.Second) }
			told := func(w storage.Write, cursor string) storage.Write {
				w.Cursor = cursor
				return w
			}
			fx.replay(t, told(accepted(in, ""), place(ahead(1), 4)))
			fx.placed(t, id, storage.TypeCreated, t0, place(ahead(1), 4))
			fx.pass(2)
			at := fx.since(in, 2)
			fx.replay(t, told(activity(id, at, storage.Activity{Time: at}), place(ahead(2), 0)))
			fx.placed(t, id, storage.TypeExtended+"/1", at, place(ahead(2), 0))
			// One that was given to another event meanwhile.
			fx.replay(t, told(end(id, at, ""), place(ahead(1), 9)))
			fx.placed(t, id, storage.TypeEnded, at, place(ahead(2), 1))
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
			other := fx.create(t, "acme", "ann", long)
			fx.replay(t, appended(id, fx.since(s, 5), fx.told("1", "")), appended(other, fx.Now(), fx.told("1", "")))
			fx.pass(1)
			res := fx.sweep(t)
			equal(t, "expired before its activity was looked at", res.Expired, 0)
			equal(t, "held", res.Held, 1)
			// The group finds that it is activity.
			fx.extend(t, id, "1", fx.since(s, 5))
			equal(t, "extensions", fx.get(t, id).GetExtensionCount(), 1)
			settled(4)
			fx.pass(3) // past the new deadline
			equal(t, "expired in the end", fx.sweep(t).Expired, 1)

			id = fx.create(t, "acme", "ann")
			s = fx.get(t, id)
			fx.pass(7)
			// What is older than settle_max takes nothing from what is not.
			fx.replay(t, appended(other, fx.since(s, -30), fx.told("2", "")))
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
