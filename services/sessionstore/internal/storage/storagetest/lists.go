package storagetest

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// all pages through a list; between may change the store between two pages.
func (fx Fixture) all(t TB, q storage.ListQuery, between func()) []string {
	t.Helper()
	var ids []string
	for range 1000 {
		p, err := fx.Store.List(t.Context(), q)
		ok(t, err)
		if len(p.Sessions) > q.Limit {
			t.Errorf("a page of %d, more than %d", len(p.Sessions), q.Limit)
		}
		for _, s := range p.Sessions {
			ids = append(ids, s.GetId())
		}
		if q.Token = p.Next; q.Token == "" {
			return ids
		}
		if between != nil {
			between()
		}
	}
	t.Fatalf("the list does not end")
	return nil
}

func sorted(ids []string) []string {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return ids
}

func listCases() []Case {
	return []Case{
		{"list/filters and pages", func(t TB, fx Fixture) {
			byUser, byProject, both := map[string][]string{}, map[string][]string{}, map[string][]string{}
			var every []string
			for n := range 24 {
				project, user := []string{"acme", "acme2", ""}[n%3], []string{"ann", "an", "ann|x/y ü", ""}[n%4]
				id := fx.create(t, project, user, long)
				every = append(every, id)
				byUser[user] = append(byUser[user], id)
				byProject[project] = append(byProject[project], id)
				both[project+" "+user] = append(both[project+" "+user], id)
			}
			for _, limit := range []int{1, 5, 1000} {
				list(t, "all", sorted(fx.all(t, storage.ListQuery{Limit: limit}, nil)), sorted(every)...)
				for _, user := range []string{"ann", "an", "ann|x/y ü"} {
					list(t, "user "+user, sorted(fx.all(t, storage.ListQuery{User: user, Limit: limit}, nil)), sorted(byUser[user])...)
					list(t, "both "+user, sorted(fx.all(t, storage.ListQuery{Project: "acme", User: user, Limit: limit}, nil)), sorted(both["acme "+user])...)
				}
				for _, project := range []string{"acme", "acme2"} {
					list(t, "project "+project, sorted(fx.all(t, storage.ListQuery{Project: project, Limit: limit}, nil)), sorted(byProject[project])...)
				}
			}
			list(t, "nobody", fx.all(t, storage.ListQuery{User: "nobody", Limit: 5}, nil))
		}},
		{"list/stable while sessions come and go", func(t TB, fx Fixture) {
			var stay []string
			for n := range 30 {
				stay = append(stay, fx.create(t, "acme", fmt.Sprintf("u%d", n%5), long))
			}
			n := 0
			var passing []string
			got := fx.all(t, storage.ListQuery{Project: "acme", Limit: 3}, func() {
				n++
				passing = append(passing, fx.create(t, "acme", fmt.Sprintf("u%d", n%5), long))
				if n%2 == 0 {
					ok(t, fx.Store.Delete(t.Context(), passing[n/2]))
				}
			})
			seen := map[string]int{}
			for _, id := range got {
				seen[id]++
			}
			for _, id := range stay {
				if seen[id] != 1 {
					t.Errorf("a session that was there throughout was listed %d times", seen[id])
				}
			}
			for id, n := range seen {
				if n > 1 {
					t.Errorf("%s was listed %d times", id, n)
				}
			}
		}},
		{"list/by phase", func(t TB, fx Fixture) {
			active := fx.create(t, "acme", "ann", long)
			ended := fx.create(t, "acme", "ann", long)
			_, err := fx.Store.End(t.Context(), ended, "")
			ok(t, err)
			swept := fx.create(t, "acme", "ann")
			fx.pass(6.5)
			fx.sweep(t)
			dying := fx.create(t, "acme", "ann")
			fx.pass(6.2)
			idle := active // no activity within the window by now
			active = fx.create(t, "acme", "ann", long)
			expiring := fx.create(t, "acme", "bob", func(p *sessionv1.TTLPolicy) {
				p.BaseTtl = durationpb.New(4 * fx.Unit)
			})
			for phase, want := range map[sessionv1.Session_Phase][]string{
				sessionv1.Session_PHASE_UNSPECIFIED: {active, idle, expiring},
				sessionv1.Session_ACTIVE:            {active},
				sessionv1.Session_IDLE:              {idle},
				sessionv1.Session_EXPIRING:          {expiring},
				sessionv1.Session_ENDED:             {ended},
				sessionv1.Session_EXPIRED:           {swept, dying},
			} {
				for _, limit := range []int{1, 100} {
					got := fx.all(t, storage.ListQuery{Phase: phase, Limit: limit}, nil)
					list(t, phase.String(), sorted(got), sorted(want)...)
				}
			}
		}},
		{"list/alien tokens are refused", func(t TB, fx Fixture) {
			for range 3 {
				fx.create(t, "acme", "ann", long)
			}
			p, err := fx.Store.List(t.Context(), storage.ListQuery{Project: "acme", Limit: 1})
			ok(t, err)
			for _, q := range []storage.ListQuery{{Limit: 1, Token: "zzz"}, {Limit: 1, Token: p.Next}, {Project: "other", Limit: 1, Token: p.Next}} {
				var bad *storage.InvalidError
				if _, err := fx.Store.List(t.Context(), q); !errors.As(err, &bad) || bad.Field != "pageToken" {
					t.Errorf("%+v: %v", q, err)
				}
			}
			var bad *storage.InvalidError
			if _, err := fx.Store.ActiveUsers(t.Context(), storage.ListQuery{Project: "acme", Limit: 1, Token: p.Next}); !errors.As(err, &bad) {
				t.Errorf("a token of another list: %v", err)
			}
		}},
		{"users/each once, while a session lives", func(t TB, fx Fixture) {
			fx.create(t, "acme", "", long)
			want := map[string]int32{}
			for n := range 20 {
				user := fmt.Sprintf("u%02d", n%6)
				fx.create(t, "acme", user, long)
				want["acme/"+user]++
			}
			fx.create(t, "other", "u00", long)
			want["other/u00"]++
			fx.create(t, "acme", "short")
			gone := fx.create(t, "acme", "gone", long)
			_, err := fx.Store.End(t.Context(), gone, "")
			ok(t, err)
			fx.pass(7)
			for _, limit := range []int{1, 4, 100} {
				got := map[string]int32{}
				q := storage.ListQuery{Limit: limit}
				for {
					p, err := fx.Store.ActiveUsers(t.Context(), q)
					ok(t, err)
					for _, u := range p.Users {
						got[u.GetProject()+"/"+u.GetUser()] += u.GetSessionCount()
					}
					if q.Token = p.Next; q.Token == "" {
						break
					}
				}
				equal(t, "users", fmt.Sprint(got), fmt.Sprint(want))
			}
			p, err := fx.Store.ActiveUsers(t.Context(), storage.ListQuery{Project: "other", Limit: 10})
			ok(t, err)
			equal(t, "users of one project", len(p.Users), 1)
		}},
		{"revoke/all but the exceptions", func(t TB, fx Fixture) {
			var mine []string
			for range 5 {
				mine = append(mine, fx.create(t, "acme", "ann", long))
			}
			others := []string{fx.create(t, "acme", "ann2", long), fx.create(t, "other", "ann", long)}
			n, err := fx.Store.RevokeUser(t.Context(), "acme", "ann", mine[:1], "stolen")
			ok(t, err)
			equal(t, "revoked", n, 4)
			for i, id := range append(mine, others...) {
				want := sessionv1.Session_ACTIVE
				if i >= 1 && i < 5 {
					want = sessionv1.Session_ENDED
					equal(t, "reason", fx.get(t, id).GetEndReason(), "stolen")
				}
				equal(t, fmt.Sprintf("phase of %d", i), fx.get(t, id).GetPhase(), want)
			}
			n, err = fx.Store.RevokeUser(t.Context(), "acme", "ann", mine[:1], "stolen")
			ok(t, err)
			equal(t, "revoked again", n, 0)
		}},
	}
}
