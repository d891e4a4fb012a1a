package storagetest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

func sessionCases() []Case {
	return []Case{
		{"create/the same id is the same call", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy(long))
			first, _, err := fx.Store.Create(t.Context(), in, "")
			ok(t, err)
			fx.append(t, first.GetId(), "e")
			again, existed, err := fx.Store.Create(t.Context(), in, "")
			ok(t, err)
			equal(t, "id", again.GetId(), first.GetId())
			equal(t, "existed", existed, false)
			equal(t, "session:created", count(fx.types(t, first.GetId()), storage.TypeCreated), 1)
			equal(t, "events", len(fx.types(t, first.GetId())), 2)
			equal(t, "revision", again.GetRevision(), 1)
		}},
		{"create/stores what it was given", func(t TB, fx Fixture) {
			in := fx.fresh("acme", "ann", "", fx.policy())
			in.Labels = map[string]string{"a": "b", "ü": "ö"}
			in.Data, _ = structpb.NewValue(map[string]any{"n": 1.5, "list": []any{nil, true, "x"}, "ünï": "çödé"})
			got, existed, err := fx.Store.Create(t.Context(), in, "")
			ok(t, err)
			equal(t, "existed", existed, false)
			want, _ := proto.Clone(storage.CreatedAt(in, lifetime.Millis(got.GetCreateTime()))).(*sessionv1.Session)
			want.Phase = sessionv1.Session_ACTIVE
			same(t, "created", got, want)
			same(t, "read back", fx.get(t, in.GetId()), want)
			list(t, "log", fx.types(t, in.GetId()), storage.TypeCreated)
		}},
		{"create/same request same session", func(t TB, fx Fixture) {
			ids := map[string]int{}
			made := 0
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					s, existed, err := fx.Store.Create(t.Context(), fx.fresh("acme", "ann", "r", fx.policy(long)), "r")
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Errorf("%v", err)
						return
					}
					ids[s.GetId()]++
					if !existed {
						made++
					}
				})
			}
			wg.Wait()
			equal(t, "sessions", len(ids), 1)
			equal(t, "made", made, 1)
			other, existed, err := fx.Store.Create(t.Context(), fx.fresh("acme", "bob", "r", fx.policy(long)), "r")
			ok(t, err)
			if existed || ids[other.GetId()] > 0 {
				t.Errorf("another user's request with the same id found this session")
			}
		}},
		{"create/requests of different users are different", func(t TB, fx Fixture) {
			seen := map[string]string{}
			for _, c := range [][2]string{{"ann", "b/c"}, {"ann/b", "c"}, {"", "ann/b/c"}} {
				s, existed, err := fx.Store.Create(t.Context(), fx.fresh("acme", c[0], c[1], fx.policy(long)), c[1])
				ok(t, err)
				if existed || seen[s.GetId()] != "" {
					t.Errorf("%v found the session of %s", c, seen[s.GetId()])
				}
				seen[s.GetId()] = c[0]
			}
		}},
		{"create/request id lasts as long as the session", func(t TB, fx Fixture) {
			first, _, err := fx.Store.Create(t.Context(), fx.fresh("acme", "", "r", fx.policy(long)), "r")
			ok(t, err)
			_, err = fx.Store.End(t.Context(), first.GetId(), "")
			ok(t, err)
			again, existed, err := fx.Store.Create(t.Context(), fx.fresh("acme", "", "r", fx.policy(long)), "r")
			ok(t, err)
			if !existed || again.GetId() != first.GetId() || again.GetPhase() != sessionv1.Session_ENDED {
				t.Errorf("the ended session was not returned: %v %v", existed, again)
			}
			ok(t, fx.Store.Delete(t.Context(), first.GetId()))
			fresh, existed, err := fx.Store.Create(t.Context(), fx.fresh("acme", "", "r", fx.policy(long)), "r")
			ok(t, err)
			if existed || fresh.GetId() == first.GetId() {
				t.Errorf("a deleted session was returned: %v %v", existed, fresh)
			}
		}},
		{"get/unknown is not found", func(t TB, fx Fixture) {
			for _, id := range []string{sessionid.New(0), "nonsense", ""} {
				if _, err := fx.Store.Get(t.Context(), id); !errors.Is(err, storage.ErrNotFound) {
					t.Errorf("%q: %v", id, err)
				}
			}
		}},
		{"get/changes nothing", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			first := fx.get(t, id)
			for range 5 {
				fx.pass(0.9)
				got, _ := proto.Clone(fx.get(t, id)).(*sessionv1.Session)
				got.Phase = first.GetPhase()
				same(t, "read again", got, first)
			}
			fx.pass(2)
			equal(t, "phase past the deadline, not swept", fx.get(t, id).GetPhase(), sessionv1.Session_EXPIRED)
		}},
		{"get/many answers per id", func(t TB, fx Fixture) {
			a, b := fx.create(t, "acme", "ann", long), fx.create(t, "acme", "bob", long)
			res, err := fx.Store.GetMany(t.Context(), []string{b, "nonsense", sessionid.New(1), a})
			ok(t, err)
			equal(t, "answers", len(res), 4)
			equal(t, "first", res[0].Session.GetId(), b)
			equal(t, "last", res[3].Session.GetId(), a)
			for _, i := range []int{1, 2} {
				if !errors.Is(res[i].Err, storage.ErrNotFound) {
					t.Errorf("answer %d: %v", i, res[i].Err)
				}
			}
		}},
		{"update/labels and data", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			update := func(u storage.Update) *sessionv1.Session {
				s, err := fx.Store.Update(t.Context(), id, u)
				ok(t, err)
				same(t, "returned and read", s, fx.get(t, id))
				return s
			}
			s := update(storage.Update{SetLabels: map[string]string{"a": "1", "b": "2"}, SetData: true, Data: structpb.NewNumberValue(7)})
			equal(t, "revision", s.GetRevision(), 2)
			equal(t, "label a", s.GetLabels()["a"], "1")
			equal(t, "data", s.GetData().GetNumberValue(), 7)
			fx.pass(0.1)
			s = update(storage.Update{SetLabels: map[string]string{"a": "3"}, DeleteLabels: []string{"b", "none"}})
			equal(t, "labels", fmt.Sprint(s.GetLabels()), "map[a:3]")
			equal(t, "data kept", s.GetData().GetNumberValue(), 7)
			if !s.GetUpdateTime().AsTime().After(s.GetCreateTime().AsTime()) {
				t.Errorf("update_time %v is not after %v", s.GetUpdateTime(), s.GetCreateTime())
			}
			s = update(storage.Update{ReplaceLabels: true, SetLabels: map[string]string{"z": "9"}})
			equal(t, "labels replaced", fmt.Sprint(s.GetLabels()), "map[z:9]")
			s = update(storage.Update{SetData: true})
			if s.GetData() != nil || s.GetRevision() != 5 {
				t.Errorf("data not removed, or revision not 5: %v", s)
			}
		}},
		{"update/expected revision", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			_, err := fx.Store.Update(t.Context(), id, storage.Update{IfRevision: 1, SetLabels: map[string]string{"a": "1"}})
			ok(t, err)
			if _, err := fx.Store.Update(t.Context(), id, storage.Update{IfRevision: 1, SetLabels: map[string]string{"a": "2"}}); !errors.Is(err, storage.ErrConflict) {
				t.Errorf("a stale revision: %v", err)
			}
			equal(t, "label", fx.get(t, id).GetLabels()["a"], "1")
		}},
		{"update/one of several wins", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			won, lost := 0, 0
			var mu sync.Mutex
			var wg sync.WaitGroup
			for n := range 20 {
				wg.Go(func() {
					_, err := fx.Store.Update(t.Context(), id, storage.Update{IfRevision: 1, SetLabels: map[string]string{"n": fmt.Sprint(n)}})
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						won++
					case errors.Is(err, storage.ErrConflict):
						lost++
					default:
						t.Errorf("%v", err)
					}
				})
			}
			wg.Wait()
			if won != 1 || lost != 19 {
				t.Errorf("%d won and %d lost, want 1 and 19", won, lost)
			}
		}},
		{"update/none is lost without a revision", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			var wg sync.WaitGroup
			for n := range 10 {
				wg.Go(func() {
					if _, err := fx.Store.Update(t.Context(), id, storage.Update{SetLabels: map[string]string{fmt.Sprint(n): "x"}}); err != nil {
						t.Errorf("%v", err)
					}
				})
			}
			wg.Wait()
			s := fx.get(t, id)
			equal(t, "labels", len(s.GetLabels()), 10)
			equal(t, "revision", s.GetRevision(), 11)
		}},
		{"update/refused", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			var bad *storage.InvalidError
			if _, err := fx.Store.Update(t.Context(), id, storage.Update{SetLabels: map[string]string{"a": "", "b": ""}, MaxLabels: 1}); !errors.As(err, &bad) {
				t.Errorf("too many labels: %v", err)
			}
			u := storage.Update{SetLabels: map[string]string{"a": "1"}}
			if _, err := fx.Store.Update(t.Context(), sessionid.New(0), u); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("unknown: %v", err)
			}
			fx.pass(7)
			if _, err := fx.Store.Update(t.Context(), id, u); !errors.Is(err, storage.ErrEnded) {
				t.Errorf("past the deadline: %v", err)
			}
			ended := fx.create(t, "acme", "ann", long)
			_, err := fx.Store.End(t.Context(), ended, "")
			ok(t, err)
			if _, err := fx.Store.Update(t.Context(), ended, u); !errors.Is(err, storage.ErrEnded) {
				t.Errorf("ended: %v", err)
			}
		}},
		{"end/once, with its reason", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			fx.pass(0.5)
			s, err := fx.Store.End(t.Context(), id, "done")
			ok(t, err)
			equal(t, "phase", s.GetPhase(), sessionv1.Session_ENDED)
			equal(t, "reason", s.GetEndReason(), "done")
			equal(t, "revision", s.GetRevision(), 2)
			if d := s.GetEndTime().AsTime().Sub(fx.Now()).Abs(); s.GetEndTime() == nil || d > time.Second {
				t.Errorf("end_time %v is not now", s.GetEndTime())
			}
			again, err := fx.Store.End(t.Context(), id, "again")
			ok(t, err)
			same(t, "ended again", again, s)
			list(t, "log", fx.types(t, id), storage.TypeCreated, storage.TypeEnded)
			page, err := fx.Store.List(t.Context(), storage.ListQuery{Limit: 10})
			ok(t, err)
			equal(t, "live sessions", len(page.Sessions), 0)
			users, err := fx.Store.ActiveUsers(t.Context(), storage.ListQuery{Limit: 10})
			ok(t, err)
			equal(t, "active users", len(users.Users), 0)
			if _, err := fx.Store.End(t.Context(), sessionid.New(0), ""); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("unknown: %v", err)
			}
		}},
		{"delete/leaves nothing", func(t TB, fx Fixture) {
			before := fx.entries()
			s, _, err := fx.Store.Create(t.Context(), fx.fresh("acme", "ann", "r", fx.policy(long)), "r")
			ok(t, err)
			fx.append(t, s.GetId(), "1", "2")
			ok(t, fx.Store.Delete(t.Context(), s.GetId()))
			if _, err := fx.Store.Get(t.Context(), s.GetId()); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("get: %v", err)
			}
			if _, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: s.GetId(), After: "0", Limit: 1}); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("events: %v", err)
			}
			if err := fx.Store.Delete(t.Context(), s.GetId()); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("delete again: %v", err)
			}
			equal(t, "entries", fx.entries(), before)
		}},
		{"close/ends what waits", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			r, err := fx.Store.OpenFeed(t.Context(), "g", "c")
			ok(t, err)
			_, err = r.Next(t.Context(), 10) // the assignment
			ok(t, err)
			results := make(chan error, 2)
			go func() {
				_, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: fx.last(t, id), Limit: 1, Wait: 20 * time.Second})
				results <- err
			}()
			go func() {
				for {
					if _, err := r.Next(t.Context(), 10); err != nil {
						results <- err
						return
					}
				}
			}()
			ok(t, fx.Store.Close())
			for range 2 {
				select {
				case err := <-results:
					if !errors.Is(err, storage.ErrClosed) {
						t.Errorf("%v", err)
					}
				case <-time.After(5 * time.Second):
					t.Fatalf("a call still waits after Close")
				}
			}
			ok(t, fx.Store.Close())
			if _, err := fx.Store.Get(t.Context(), id); !errors.Is(err, storage.ErrClosed) {
				t.Errorf("get after close: %v", err)
			}
		}},
	}
}

func (fx Fixture) entries() int {
	if fx.Entries == nil {
		return 0
	}
	return fx.Entries()
}

// last is the cursor of a session's latest event.
func (fx Fixture) last(t TB, id string) string {
	t.Helper()
	p, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, Tail: 1, Limit: 1})
	if err != nil {
		return "0"
	}
	return p.Next
}

func policyCases() []Case {
	return []Case{{"policies/set, get, list, delete", func(t TB, fx Fixture) {
		if _, err := fx.Store.GetPolicy(t.Context(), "acme"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("before: %v", err)
		}
		var want []string
		for n := range 7 {
			want = append(want, fmt.Sprintf("p%d", n))
			set, err := fx.Store.SetPolicy(t.Context(), want[n], fx.policy())
			ok(t, err)
			got, err := fx.Store.GetPolicy(t.Context(), want[n])
			ok(t, err)
			same(t, "policy", got, set)
			same(t, "as set", got.GetPolicy(), fx.policy())
		}
		var got []string
		for token := ""; ; {
			p, err := fx.Store.ListPolicies(t.Context(), 3, token)
			ok(t, err)
			for _, p := range p.Policies {
				got = append(got, p.GetProject())
			}
			if token = p.Next; token == "" {
				break
			}
		}
		list(t, "listed", got, want...)
		ok(t, fx.Store.DeletePolicy(t.Context(), "p0"))
		if err := fx.Store.DeletePolicy(t.Context(), "p0"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("deleted again: %v", err)
		}
		var bad *storage.InvalidError
		if _, err := fx.Store.ListPolicies(t.Context(), 3, "zzz"); !errors.As(err, &bad) || bad.Field != "pageToken" {
			t.Errorf("an alien token: %v", err)
		}
	}}}
}
