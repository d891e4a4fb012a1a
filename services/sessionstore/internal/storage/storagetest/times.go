package storagetest

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// clockSlack is how far the clock of a backend in another process may be from the
// fixture's.
const clockSlack = 50 * time.Millisecond

// timeCases are about when a session is created.
func timeCases() []Case {
	return []Case{
		{"create/is created now whatever time it carries", func(t TB, fx Fixture) {
			for _, off := range []time.Duration{-1000 * time.Hour, -fx.Unit, 0, fx.Unit, 1000 * time.Hour} {
				in := fx.fresh("acme", "ann", "", fx.policy())
				in = storage.CreatedAt(in, lifetime.Millis(in.GetCreateTime())+off.Milliseconds())
				before := fx.Now()
				got, _, err := fx.Store.Create(t.Context(), in, "")
				ok(t, err)
				created := got.GetCreateTime().AsTime()
				if created.Before(before.Add(-clockSlack)) || created.After(fx.Now().Add(clockSlack)) {
					t.Errorf("%v off: created at %v, the store's clock is at %v", off, created, fx.Now())
				}
				want := storage.CreatedAt(in, lifetime.Millis(got.GetCreateTime()))
				same(t, "expire_time", got.GetExpireTime(), want.GetExpireTime())
				same(t, "cap_time", got.GetCapTime(), want.GetCapTime())
				same(t, "update_time", got.GetUpdateTime(), got.GetCreateTime())
				same(t, "last_activity_time", got.GetLastActivityTime(), got.GetCreateTime())
				same(t, "read back", fx.get(t, got.GetId()), got)
				log := fx.log(t, got.GetId())
				equal(t, "events", len(log), 1)
				same(t, "time of session:created", log[0].GetTime(), got.GetCreateTime())
			}
		}},
		{"create/a cap at the end of time stays there", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy(func(p *sessionv1.TTLPolicy) {
				p.Extension, p.MaxExtensions = durationpb.New(3650*24*time.Hour), proto.Int32(1_000_000)
			}))
			in = storage.CreatedAt(in, lifetime.Millis(in.GetCreateTime())+time.Hour.Milliseconds())
			got, _, err := fx.Store.Create(t.Context(), in, "")
			ok(t, err)
			equal(t, "cap", got.GetCapTime().AsTime().Year(), 9999)
			fx.pass(2)
			r := fx.extend(t, got.GetId(), "e", fx.Now())
			equal(t, "extensions", fx.get(t, got.GetId()).GetExtensionCount(), 1)
			same(t, "cap after an extension", r.GetAfter().GetCapTime(), got.GetCapTime())
		}},
		{"replay/a create moves what an attempt has stored", func(t TB, fx Fixture) {
			for _, off := range []float64{1, -1} {
				in := fx.fresh("acme", "ann", "", fx.policy())
				first, _, err := fx.Store.Create(t.Context(), in, "") // whose reply is lost
				ok(t, err)
				told := storage.CreatedAt(first, fx.since(first, off).UnixMilli())
				fx.replay(t, accepted(told, ""))
				got := storage.Shallow(fx.get(t, in.GetId()))
				got.Phase = told.GetPhase()
				same(t, "session", got, told)
				before := fx.seen(t, in.GetId())
				fx.replay(t, accepted(told, ""))
				equal(t, "the same again", fx.seen(t, in.GetId()), before)
				fx.pass(6 + off - 0.5)
				fx.sweep(t)
				equal(t, "ended before its deadline", fx.get(t, in.GetId()).GetEndTime() != nil, false)
				fx.pass(1)
				fx.sweep(t)
				list(t, "log", fx.types(t, in.GetId()), storage.TypeCreated, storage.TypeExpiring, storage.TypeExpired)
				before = fx.seen(t, in.GetId())
				fx.replay(t, accepted(first, ""))
				equal(t, "once it is over", fx.seen(t, in.GetId()), before)
			}
		}},
		{"replay/a create moves what was changed since", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy())
			first, _, err := fx.Store.Create(t.Context(), in, "")
			ok(t, err)
			fx.pass(2)
			fx.extend(t, in.GetId(), "e", fx.since(first, 1.5))
			changed := fx.get(t, in.GetId())
			equal(t, "extensions", changed.GetExtensionCount(), 1)
			told := storage.CreatedAt(first, fx.since(first, 0.5).UnixMilli())
			fx.replay(t, accepted(told, ""))
			got := fx.get(t, in.GetId())
			same(t, "create_time", got.GetCreateTime(), told.GetCreateTime())
			same(t, "cap_time", got.GetCapTime(), told.GetCapTime())
			equal(t, "deadline moved by", got.GetExpireTime().AsTime().Sub(changed.GetExpireTime().AsTime()), fx.Unit/2)
			same(t, "last_activity_time", got.GetLastActivityTime(), changed.GetLastActivityTime())
			equal(t, "extensions", got.GetExtensionCount(), 1)
		}},
	}
}
