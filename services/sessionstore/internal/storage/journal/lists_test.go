package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// stuck is a rig whose store underneath answers everything but replays, until it
// is let go.
func stuck(t T, dir string) (r *rig, release func()) {
	t.Helper()
	r = newRig(t, dir)
	inner := r.below.Store
	var back atomic.Bool
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		if !back.Load() {
			return storage.ErrExhausted // no verdict either
		}
		return inner.Replay(ctx, w)
	}}
	return r, func() { back.Store(true) }
}

// lister changes sessions at random, some by the journal and some without.
type lister struct {
	*rig
	ids []string
}

func (l *lister) createAs(project, user string) {
	l.t.Helper()
	s := l.fresh(user)
	s.Project = project
	s.Id = sessionid.New(sessionid.ShardOf(project, user, s.GetId(), storagetest.Shards))
	out, _, err := l.Create(context.Background(), s, "")
	if err != nil {
		l.t.Fatal(err)
	}
	l.ids = append(l.ids, out.GetId())
}

// change makes a change, by the journal where outage is set.
func (l *lister) change(rt *rapid.T) {
	ctx := context.Background()
	fault := storagetest.Works
	if rapid.Bool().Draw(rt, "in an outage") {
		fault = storagetest.Refuses
	}
	l.below.Set(fault)
	defer l.below.Set(storagetest.Works)
	op := rapid.SampledFrom([]string{"create", "create", "append", "update", "end", "delete", "extend"}).Draw(rt, "op")
	if op == "create" || len(l.ids) == 0 {
		user := rapid.SampledFrom([]string{"ann", "bob", "eve", ""}).Draw(rt, "user")
		l.createAs(rapid.SampledFrom([]string{"acme", "zoo"}).Draw(rt, "project"), user)
		return
	}
	id := rapid.SampledFrom(l.ids).Draw(rt, "id")
	var err error
	switch op {
	case "append":
		_, err = l.Append(ctx, id, []*sessionv1.Event{event(storage.NewWriteID())})
	case "update":
		_, err = l.Update(ctx, id, label("k", storage.NewWriteID()))
	case "end":
		_, err = l.End(ctx, id, "done")
	case "delete":
		err = l.Delete(ctx, id)
	case "extend":
		l.clock.Advance(time.Second)
		_, err = l.Extend(ctx, []storage.Activity{{SessionID: id}})
	}
	if fault != storagetest.Works && errors.Is(err, storage.ErrUnavailable) {
		return // one that may have ended is not known here
	}
	if err != nil && !errors.Is(err, storage.ErrEnded) && !errors.Is(err, storage.ErrNotFound) {
		rt.Fatalf("%s: %v", op, err)
	}
}

// live returns the sessions that a query is to list, in order.
func (l *lister) live(q storage.ListQuery) []string {
	at := map[string]entryPlace{}
	for _, id := range l.ids {
		sess, err := l.Get(context.Background(), id)
		if err != nil || sess.GetEndTime() != nil || q.User != "" && sess.GetUser() != q.User || q.Project != "" && sess.GetProject() != q.Project {
			continue
		}
		shard, _ := sessionid.Shard(id, storagetest.Shards)
		key := sess.GetProject() + "\x00" + sess.GetUser() + "\x00" + id
		if q.Project == "" && q.User != "" {
			key = sess.GetUser() + "\x00" + sess.GetProject() + "\x00" + id
		}
		at[id] = entryPlace{shard, key}
	}
	return slices.SortedFunc(maps.Keys(at), func(a, b string) int { return compare(at[a], at[b]) })
}

func (l *lister) listed(rt *rapid.T, q storage.ListQuery) (out []string) {
	for {
		page := must[storage.SessionPage](rt)(l.List(context.Background(), q))
		if len(page.Sessions) > q.Limit {
			rt.Fatalf("%d sessions on a page of %d", len(page.Sessions), q.Limit)
		}
		for _, s := range page.Sessions {
			out = append(out, s.GetId())
			if want := must[*sessionv1.Session](rt)(l.Get(context.Background(), s.GetId())); want.GetRevision() != s.GetRevision() || want.GetPhase() != s.GetPhase() {
				rt.Fatalf("listed as %v, reads as %v", s, want)
			}
		}
		if q.Token = page.Next; q.Token == "" {
			return out
		}
	}
}

// checkLists compares every list with what is read of each session.
func (l *lister) checkLists(rt *rapid.T) {
	limit := rapid.IntRange(1, 6).Draw(rt, "limit")
	for _, q := range []storage.ListQuery{{}, {Project: "acme"}, {User: "ann"}, {Project: "zoo", User: "bob"}} {
		q.Limit = limit
		if got, want := l.listed(rt, q), l.live(q); !slices.Equal(got, want) {
			rt.Fatalf("%+v: listed %v, want %v", q, got, want)
		}
	}
	users, ended, census := map[string]int32{}, map[string]bool{}, storage.Census{ByPhase: map[sessionv1.Session_Phase]int64{}}
	for _, id := range l.ids {
		sess, err := l.Get(context.Background(), id)
		switch {
		case err != nil:
		case sess.GetEndTime() != nil:
			ended[id] = true
		default:
			addToCensus(&census, sess, 1)
			if sess.GetUser() != "" {
				users[sess.GetProject()+"/"+sess.GetUser()]++
			}
		}
	}
	got := map[string]int32{}
	for q := (storage.ListQuery{Limit: min(limit, 2)}); ; {
		page := must[storage.UserPage](rt)(l.ActiveUsers(context.Background(), q))
		for _, u := range page.Users {
			name := u.GetProject() + "/" + u.GetUser()
			if _, twice := got[name]; twice {
				rt.Fatalf("%s is listed twice", name)
			}
			got[name] = u.GetSessionCount()
		}
		if q.Token = page.Next; q.Token == "" {
			break
		}
	}
	if !maps.Equal(got, users) {
		rt.Fatalf("active users %v, want %v", got, users)
	}
	over := l.listed(rt, storage.ListQuery{Phase: sessionv1.Session_ENDED, Limit: limit})
	slices.Sort(over)
	if want := slices.Sorted(maps.Keys(ended)); !slices.Equal(over, want) {
		rt.Fatalf("ended: listed %v, want %v", over, want)
	}
	if c := must[storage.Census](rt)(l.Census(context.Background())); !maps.Equal(c.ByPhase, census.ByPhase) || c.AtCap != census.AtCap {
		rt.Fatalf("census %v, want %v", c, census)
	}
}

// TestListsMergeWhatWaits: whatever waits, lists, users and counts are those of the
// sessions as they are read, page by page and in the order of the store underneath;
// and the same once all is replayed.
func TestListsMergeWhatWaits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r, release := stuck(rt, t.TempDir())
		defer r.close()
		defer release()
		l := &lister{rig: r}
		for range rapid.IntRange(1, 25).Draw(rt, "changes") {
			l.change(rt)
		}
		l.checkLists(rt)
		release()
		r.drained()
		l.checkLists(rt)
		if n := r.Stats().DeadLetters; n != 0 {
			rt.Fatalf("%d dead letters", n)
		}
	})
}

// TestListsWhileSessionsLeave: a session that is replayed while it is listed is
// listed once, and as it is afterwards.
func TestListsWhileSessionsLeave(t *testing.T) {
	for _, op := range []string{"created", "ended", "updated"} {
		t.Run(op, func(t *testing.T) {
			ctx := t.Context()
			r, release := stuck(t, t.TempDir())
			defer r.close()
			if op == "created" {
				r.below.Set(storagetest.Refuses)
			}
			id := r.create("ann")
			r.below.Set(storagetest.Refuses)
			switch op {
			case "created":
			case "ended":
				must[*sessionv1.Session](t)(r.End(ctx, id, "done"))
			default:
				must[*sessionv1.Session](t)(r.Update(ctx, id, label("k", "v")))
			}
			r.below.Set(storagetest.Works)
			// The store underneath has listed what it knows when the replay comes.
			inner := r.below.Store
			listing := &lateList{Store: inner, then: func() { release(); r.drained() }}
			r.below.Store = listing
			page := must[storage.SessionPage](t)(r.List(ctx, storage.ListQuery{Limit: 10}))
			if !listing.asked || (len(page.Sessions) == 1) != (op != "ended") {
				t.Fatalf("asked %v, listed %v", listing.asked, page.Sessions)
			}
			if op == "updated" && page.Sessions[0].GetLabels()["k"] != "v" {
				t.Errorf("listed as it was: %v", page.Sessions[0])
			}
		})
	}
}

// lateList does something between a list and its answer.
type lateList struct {
	storage.Store
	then  func()
	asked bool
}

func (l *lateList) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	page, err := l.Store.List(ctx, q)
	l.asked = true
	l.then()
	return page, err
}

// TestRevokesWhatWaits: a revocation ends the sessions that have writes waiting,
// too, behind these writes; where the store underneath does not answer it changes
// nothing.
func TestRevokesWhatWaits(t *testing.T) {
	ctx := t.Context()
	r, release := stuck(t, t.TempDir())
	defer r.close()
	plain, busy, spared := r.create("ann"), r.create("ann"), r.create("ann")
	other := r.create("bob")
	r.below.Set(storagetest.Refuses)
	must[[]string](t)(r.Append(ctx, busy, []*sessionv1.Event{event("e")}))
	must[[]string](t)(r.Append(ctx, spared, []*sessionv1.Event{event("e")}))
	made := r.create("ann")
	_, err := r.RevokeUser(ctx, "acme", "ann", nil, "stolen")
	wantErr(t, err, storage.ErrUnavailable)
	for _, id := range []string{busy, made} {
		if s := must[*sessionv1.Session](t)(r.Get(ctx, id)); s.GetEndTime() != nil {
			t.Errorf("half revoked: %v", s)
		}
	}
	r.below.Set(storagetest.Works)
	if n := must[int](t)(r.RevokeUser(ctx, "acme", "ann", []string{spared}, "stolen")); n != 3 {
		t.Errorf("revoked %d, want 3", n)
	}
	check := func(store storage.Store) {
		t.Helper()
		for id, over := range map[string]bool{plain: true, busy: true, made: true, spared: false, other: false} {
			s := must[*sessionv1.Session](t)(store.Get(ctx, id))
			if (s.GetEndTime() != nil) != over || over && s.GetEndReason() != "stolen" {
				t.Errorf("%s: %v", id, s)
			}
		}
	}
	check(r)
	if n := must[int](t)(r.RevokeUser(ctx, "acme", "ann", []string{spared}, "stolen")); n != 0 {
		t.Errorf("revoked %d once more", n)
	}
	release()
	r.drained()
	check(r.inner)
	if n := r.Stats().DeadLetters; n != 0 {
		t.Errorf("%d dead letters", n)
	}
	if page := must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: busy, After: "0", Limit: 10})); len(page.Events) != 3 {
		t.Errorf("log %v", page.Events)
	}
}

// TestExplainNeedsTheStore: of a session that was made here nothing can be
// explained before the store underneath knows it.
func TestExplainNeedsTheStore(t *testing.T) {
	ctx := t.Context()
	r, release := stuck(t, t.TempDir())
	defer r.close()
	r.below.Set(storagetest.Refuses)
	id := r.create("ann")
	r.below.Set(storagetest.Works)
	_, err := r.Explain(ctx, id)
	wantErr(t, err, storage.ErrUnavailable)
	release()
	r.drained()
	must[storage.Explanation](t)(r.Explain(ctx, id))
}

// BenchmarkListWhileMuchWaits lists a page while a hundred thousand sessions wait.
func BenchmarkListWhileMuchWaits(b *testing.B) {
	r, release := stuck(b, b.TempDir())
	defer r.close()
	defer release()
	r.below.Set(storagetest.Refuses)
	now := lifetime.Time(r.clock.Now().UnixMilli())
	for i := range 100_000 {
		s := r.fresh(fmt.Sprint("user-", i))
		s.CreateTime = now
		at := must[place](b)(r.accept(s.GetId(), with{cause: storage.ErrUnavailable}, func(at time.Time) (*storage.Write, error) {
			_, _, err := r.shadow.Create(context.Background(), s, "")
			return &storage.Write{SessionID: s.GetId(), At: at, Create: &storage.CreateWrite{Session: s}}, err
		}))
		_ = at
	}
	r.below.Set(storagetest.Works)
	for b.Loop() {
		must[storage.SessionPage](b)(r.List(context.Background(), storage.ListQuery{Limit: 50}))
	}
}
