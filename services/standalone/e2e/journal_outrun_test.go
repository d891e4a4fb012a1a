//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Bounds of TestReplayOutrunsLoad, counted from the first answer of Redis.
const (
	outrunCallers = 300
	outrunDrain   = 30 * time.Second
	outrunList    = 5 * time.Second
)

// TestReplayOutrunsLoad: 300 callers write through an outage of Redis and go on
// afterwards, each as soon as its last call was answered, and ten times a second at
// most. The journal must be empty within 30 s, lists, active users and revocations must
// answer within 5 s and be right, and nothing that was acknowledged may be lost.
// STOKER_OUTAGE sets how long the outage is, STOKER_PACE the
// time between two calls of a caller, 0s for none; default 20s and 100ms.
func TestReplayOutrunsLoad(t *testing.T) {
	outage, pause := envDuration(t, "STOKER_OUTAGE", 20*time.Second), envDuration(t, "STOKER_PACE", 100*time.Millisecond)
	e := newFaultEnv(t, "--data-dir", t.TempDir(), "--redis-timeout", "1s", "--journal-max-bytes", fmt.Sprint(1<<30), "--max-events", "100000")
	l := newLedger(e.note)
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range outrunCallers {
		w := &writer{ledger: l, store: e.store, user: fmt.Sprint("user-", i)}
		load.Go(func() { paceEvery(stop, max(pause, time.Nanosecond), w.step) })
	}
	leaver := &writer{ledger: l, store: e.store, user: "leaver"}
	for range 5 {
		leaver.create(t.Context())
	}
	eventually(t, 30*time.Second, "the load is on", func() bool { return l.writes() > 10*outrunCallers })

	e.proxy.Stop()
	began := time.Now()
	eventually(t, 10*time.Second, "writes are journaled", func() bool { return e.status(t).GetJournalDepth() > 0 })
	for leaver.n++; time.Since(began) < outage; leaver.n++ {
		leaver.event(t.Context(), leaver.mine[leaver.n%len(leaver.mine)])
		time.Sleep(100 * time.Millisecond)
	}
	leaver.create(t.Context()) // known to the journal alone
	waiting := e.status(t).GetJournalDepth()
	if perSecond := float64(waiting) / outage.Seconds(); perSecond < 100 {
		t.Fatalf("%d writes were journaled in %s: that is no load", waiting, outage)
	}
	must(t, e.proxy.Start())
	for e.status(t).GetJournalDrained() == 0 {
		time.Sleep(time.Millisecond)
	}
	served := time.Now()

	var drained atomic.Int64
	var watch sync.WaitGroup
	watch.Go(func() {
		var logged time.Duration
		for time.Since(served) < 4*outrunDrain {
			st, err := e.admin.GetStoreStatus(context.Background(), &sessionv1.GetStoreStatusRequest{})
			if err == nil && st.GetJournalDepth() == 0 {
				drained.Store(int64(time.Since(served)))
				return
			}
			if since := time.Since(served); since > logged+2*time.Second {
				logged = since
				t.Logf("after %s: %d wait, %d replayed", show(since), st.GetJournalDepth(), st.GetJournalDrained())
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	listed := e.outrunLists(t, l, served, leaver)
	watch.Wait()
	time.Sleep(time.Second) // the load goes on, on Redis
	close(stop)
	load.Wait()
	t.Logf("%d writes journaled in an outage of %s by %d callers; journal empty after %s; list, active users and revocation each within %s",
		waiting, outage, outrunCallers, show(time.Duration(drained.Load())), show(listed))
	if took := time.Duration(drained.Load()); took == 0 || took > outrunDrain {
		t.Errorf("the journal was empty after %s (0: never), want at most %s", took, outrunDrain)
	}
	if listed > outrunList {
		t.Errorf("lists and revocations answered after %s, want at most %s", listed, outrunList)
	}
	eventually(t, 30*time.Second, "all is replayed", func() bool { return e.status(t).GetJournalDepth() == 0 })
	if lost := l.lost(t, e.store); lost > 0 || len(l.wrong) > 0 {
		t.Errorf("%d writes lost; %d wrong answers: %s", lost, len(l.wrong), strings.Join(l.wrong[:min(5, len(l.wrong))], "\n"))
	}
	if n := e.status(t).GetDeadLetters(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// envDuration reads a duration from the environment.
func envDuration(t *testing.T, name string, otherwise time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// outrunLists lists sessions and users, and revokes, one after the other until each was
// answered, and returns how long that took at most; then it lists every session. All
// answers must include what waits in the journal.
func (e *faultEnv) outrunLists(t *testing.T, l *ledger, served time.Time, leaver *writer) time.Duration {
	t.Helper()
	ctx := t.Context()
	took := time.Duration(0) // the longest from a first try to an answer
	until := func(what string, call func() error) {
		t.Helper()
		begin := time.Now()
		eventually(t, 4*outrunDrain, what, func() bool {
			err := call()
			if c := status.Code(err); c != codes.OK && c != codes.Unavailable {
				t.Fatalf("%s: %v", what, err)
			}
			return err == nil
		})
		took = max(took, time.Since(begin))
		t.Logf("%s %s after Redis answered, having been asked for %s", what, show(time.Since(served)), show(time.Since(begin)))
	}
	want := slices.Clone(leaver.mine)
	slices.Sort(want)
	until("a user's sessions are listed", func() error {
		page, err := e.store.ListSessions(ctx, &sessionv1.ListSessionsRequest{User: leaver.user, PageSize: 100})
		var got []string
		for _, s := range page.GetSessions() {
			got = append(got, s.GetId())
		}
		if slices.Sort(got); err == nil && !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
		return err
	})
	until("users are listed", func() error {
		_, err := e.store.ListActiveUsers(ctx, &sessionv1.ListActiveUsersRequest{PageSize: 1000})
		return err
	})
	until("a user's sessions are revoked", func() error {
		r, err := e.store.RevokeUserSessions(ctx, &sessionv1.RevokeUserSessionsRequest{User: leaver.user, Reason: "done"})
		if err == nil && int(r.GetCount()) != len(want) {
			t.Errorf("revoked %d sessions, want %d", r.GetCount(), len(want))
		}
		return err
	})
	answered := took
	for _, id := range want {
		l.set(id, func(s *told) { s.ending, s.ended = true, true })
		if s, _, err := e.get(ctx, id); err != nil || s.GetEndTime() == nil {
			t.Errorf("%s was revoked and reads as %v, %v", id, s, err)
		}
	}
	until("every session is listed", func() error { return e.listsAll(ctx, t, l) })
	return answered
}

// listsAll pages through all sessions: those that live throughout must come once.
func (e *faultEnv) listsAll(ctx context.Context, t *testing.T, l *ledger) error {
	t.Helper()
	l.mu.Lock()
	before, ended := map[string]bool{}, map[string]bool{}
	for id, s := range l.told {
		before[id], ended[id] = s.lives(), s.ended || s.deleted
	}
	l.mu.Unlock()
	seen, token := map[string]int{}, ""
	for {
		page, err := e.store.ListSessions(ctx, &sessionv1.ListSessionsRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			return err
		}
		for _, s := range page.GetSessions() {
			seen[s.GetId()]++
			if ended[s.GetId()] {
				t.Errorf("%s was ended before, and is listed", s.GetId())
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	wrong := 0
	for id, lived := range before {
		if n := seen[id]; lived && l.of(id).lives() && n != 1 {
			wrong++
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d sessions that lived throughout were not listed just once", wrong, len(before))
	}
	return nil
}
