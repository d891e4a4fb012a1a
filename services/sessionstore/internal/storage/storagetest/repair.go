package storagetest

import (
	"fmt"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

func repairCases() []Case {
	return []Case{
		{"repair/changes nothing where all agrees", repairChangesNothing},
		{"repair/looks at every session", repairLooksAtAll},
	}
}

// repairChangesNothing repairs a store with sessions in every state, fully and in
// part, and compares what lists and sweeps make of it with what they did before.
func repairChangesNothing(t TB, fx Fixture) {
	live := fx.create(t, "acme", "ann", long)
	soon := fx.create(t, "acme", "bob")
	ended := fx.create(t, "acme", "cid", long)
	_, err := fx.Store.End(t.Context(), ended, "done")
	ok(t, err)
	deleted := fx.create(t, "acme", "dan", long)
	ok(t, fx.Store.Delete(t.Context(), deleted))
	fx.pass(2)
	equal(t, "warned", fx.sweep(t).Warned, 1)

	state := func() string {
		out := ""
		for _, id := range []string{live, soon, ended} {
			s := fx.get(t, id)
			out += fmt.Sprintln(id, s.GetPhase(), s.GetRevision(), s.GetExpireTime().AsTime(), s.GetUpdateTime().AsTime())
			page, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: MaxEvents})
			ok(t, err)
			for _, e := range page.Events {
				out += fmt.Sprintln(e.GetCursor(), e.GetType())
			}
		}
		for _, phase := range []sessionv1.Session_Phase{sessionv1.Session_PHASE_UNSPECIFIED, sessionv1.Session_ENDED} {
			page, err := fx.Store.List(t.Context(), storage.ListQuery{Project: "acme", Phase: phase, Limit: 100})
			ok(t, err)
			for _, s := range page.Sessions {
				out += fmt.Sprintln("listed", phase, s.GetId())
			}
		}
		return out
	}
	before := state()
	for _, budget := range []int{0, 1, 1000} {
		r, err := fx.Store.Repair(t.Context(), storage.RepairQuery{Budget: budget})
		ok(t, err)
		equal(t, "restored", r.Restored, 0)
		equal(t, "dropped", r.Dropped, 0)
	}
	equal(t, "warned again", fx.sweep(t).Warned, 0)
	equal(t, "after repairs", state(), before)
}

func repairLooksAtAll(t TB, fx Fixture) {
	for n := range 30 {
		fx.create(t, "acme", fmt.Sprint("u", n), long)
	}
	var last storage.RepairResult
	r, err := fx.Store.Repair(t.Context(), storage.RepairQuery{Report: func(r storage.RepairResult) { last = r }})
	ok(t, err)
	equal(t, "done", r.Done, true)
	equal(t, "sessions", r.Sessions, 30)
	equal(t, "skipped", r.Skipped, 0)
	if last.Sessions > r.Sessions {
		t.Errorf("reported %d of %d sessions", last.Sessions, r.Sessions)
	}
}
