package storagetest

import (
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func censusCases() []Case {
	return []Case{
		{"census/by phase, and at the cap", func(t TB, fx Fixture) {
			below := func(p *sessionv1.TTLPolicy) { p.ExtendBelow = durationpb.New(2 * fx.Unit) }
			expect := func(when, want string) {
				t.Helper()
				c, err := fx.Store.Census(t.Context())
				ok(t, err)
				equal(t, when, fmt.Sprint(c.ByPhase[sessionv1.Session_ACTIVE], " ", c.ByPhase[sessionv1.Session_IDLE], " ",
					c.ByPhase[sessionv1.Session_EXPIRING], " ", c.ByPhase[sessionv1.Session_EXPIRED], " cap ", c.AtCap), want)
			}
			expect("empty", "0 0 0 0 cap 0")
			var ids []string
			for n := range 3 {
				ids = append(ids, fx.create(t, "acme", fmt.Sprint("u", n), below))
			}
			fixed := fx.create(t, "acme", "ann", below, func(p *sessionv1.TTLPolicy) { *p.MaxExtensions = 0 })
			ended := fx.create(t, "acme", "bob", below)
			_, err := fx.Store.End(t.Context(), ended, "")
			ok(t, err)
			expect("new", "4 0 0 0 cap 1")
			fx.pass(3)
			fx.extend(t, ids[0], "", fx.since(fx.get(t, ids[0]), 2.5))
			expect("after active_window", "1 3 0 0 cap 1")
			fx.pass(1.5)
			expect("near the deadline", "0 0 4 0 cap 1")
			fx.extend(t, ids[1], "", fx.since(fx.get(t, ids[1]), 4.4))
			expect("one extended", "1 0 3 0 cap 1")
			fx.pass(2)
			expect("past the deadline", "0 1 0 3 cap 1")
			fx.sweep(t)
			expect("swept", "0 1 0 0 cap 0")
			ok(t, fx.Store.Delete(t.Context(), ids[1]))
			ok(t, fx.Store.Delete(t.Context(), fixed))
			expect("deleted", "0 0 0 0 cap 0")
		}},
	}
}
