package storagetest

import (
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

func (fx Fixture) hold(t TB, holder string, from time.Time) {
	t.Helper()
	ok(t, fx.Store.Hold(t.Context(), holder, from))
}

func holdCases() []Case {
	return []Case{
		{"hold/what is due from then on is left alone", func(t TB, fx Fixture) {
			first := fx.create(t, "acme", "ann")
			fx.pass(1)
			second := fx.create(t, "acme", "bob")
			fx.hold(t, "a", fx.get(t, second).GetExpireTime().AsTime())
			fx.pass(6.5)
			res := fx.sweep(t)
			equal(t, "expired", res.Expired, 1)
			equal(t, "held", res.Held, 1)
			equal(t, "due before", count(fx.types(t, first), storage.TypeExpired), 1)
			equal(t, "due at that time", count(fx.types(t, second), storage.TypeExpired), 0)
			fx.hold(t, "a", fx.Now())
			equal(t, "once the hold has moved on", fx.sweep(t).Expired, 1)
		}},
		{"hold/warnings, too", func(t TB, fx Fixture) {
			first := fx.create(t, "acme", "ann") // of which it is warned after 1
			s := fx.get(t, first)
			fx.pass(1)
			second := fx.create(t, "acme", "bob") // and of which after 2
			fx.hold(t, "a", fx.since(s, 1.8))
			fx.pass(2)
			equal(t, "warned", fx.sweep(t).Warned, 1)
			equal(t, "due before", count(fx.types(t, first), storage.TypeExpiring), 1)
			equal(t, "due after", count(fx.types(t, second), storage.TypeExpiring), 0)
			fx.hold(t, "a", fx.Now())
			equal(t, "warned once the hold has moved on", fx.sweep(t).Warned, 1)
			equal(t, "due after", count(fx.types(t, second), storage.TypeExpiring), 1)
		}},
		{"hold/given up", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			fx.hold(t, "a", fx.Now())
			fx.pass(6.5)
			equal(t, "held", fx.sweep(t).Expired, 0)
			fx.hold(t, "b", time.Time{})
			equal(t, "another gives up", fx.sweep(t).Expired, 0)
			fx.hold(t, "a", time.Time{})
			equal(t, "given up", fx.sweep(t).Expired, 1)
			equal(t, "session:expired", count(fx.types(t, id), storage.TypeExpired), 1)
		}},
		{"hold/the earliest counts", func(t TB, fx Fixture) {
			fx.create(t, "acme", "ann")
			start := fx.Now()
			fx.hold(t, "b", start)
			fx.pass(6.5)
			fx.hold(t, "a", fx.Now())
			fx.hold(t, "c", fx.Now())
			equal(t, "held by the earliest", fx.sweep(t).Expired, 0)
			fx.hold(t, "b", fx.Now())
			equal(t, "moved on", fx.sweep(t).Expired, 1)
		}},
		{"hold/moved back", func(t TB, fx Fixture) {
			fx.create(t, "acme", "ann")
			start := fx.Now()
			fx.pass(6.5)
			fx.hold(t, "a", fx.Now())
			fx.hold(t, "a", start)
			equal(t, "held again", fx.sweep(t).Expired, 0)
		}},
		{"hold/no longer than settle_max", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			fx.hold(t, "a", s.GetExpireTime().AsTime())
			fx.pass(21) // 15 after the deadline
			fx.hold(t, "b", fx.Now())
			res := fx.sweep(t)
			equal(t, "within settle_max", res.Expired, 0)
			fx.pass(6)
			equal(t, "after settle_max", fx.sweep(t).Expired, 1)
			// A hold that is further back holds what is due later all the same.
			fx.create(t, "acme", "bob")
			fx.pass(6.5)
			fx.hold(t, "b", time.Time{})
			equal(t, "under an old hold", fx.sweep(t).Expired, 0)
			fx.pass(20.5)
			equal(t, "settle_max after its own deadline", fx.sweep(t).Expired, 1)
		}},
		{"hold/for a bounded time", func(t TB, fx Fixture) {
			fx.create(t, "acme", "ann")
			fx.pass(6.5)
			fx.hold(t, "a", fx.Now().Add(-storage.HoldLife(0)-time.Minute))
			equal(t, "under one of long ago", fx.sweep(t).Expired, 1)
		}},
		{"hold/every replica obeys", func(t TB, fx Fixture) {
			other := fx.Store
			if fx.Replica != nil {
				other = fx.Replica()
			}
			ids := []string{fx.create(t, "acme", "ann"), fx.create(t, "acme", "bob"), fx.create(t, "acme", "eve")}
			fx.hold(t, "a", fx.Now())
			fx.pass(6.5)
			res, err := other.Sweep(t.Context())
			ok(t, err)
			equal(t, "expired by another replica", res.Expired, 0)
			ok(t, other.Hold(t.Context(), "a", time.Time{}))
			equal(t, "expired", fx.sweep(t).Expired, len(ids))
		}},
	}
}
