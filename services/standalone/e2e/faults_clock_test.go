//go:build e2e

package e2e

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// clockJump is how far the store's clock jumps. The clock of Redis, by which
// deadlines are enforced, does not.
const clockJump = time.Hour

// clockFaults are rows of the matrix: the store's clock jumps, and stays there, while
// Redis is away for a second, or without a pause.
var clockFaults = slices.Concat([]fault{
	clockFault("the store's clock jumps an hour ahead, in an outage", clockJump),
	clockFault("the store's clock jumps an hour back, in an outage", -clockJump),
}, skewFaults)

// skewFaults are those in which Redis is well.
var skewFaults = []fault{
	skewFault("the store's clock an hour ahead", clockJump),
	skewFault("the store's clock an hour back", -clockJump),
}

func clockFault(name string, by time.Duration) fault {
	return fault{
		name: name, expect: "as the outage alone, reads answered from memory; no deadline moves", opens: true, fails: true, reads: true, lasts: time.Second,
		inject: func(_ *testing.T, e *faultEnv) {
			e.proxy.Stop()
			e.skew.Store(int64(by))
		},
		heal:  func(t *testing.T, e *faultEnv) { must(t, e.proxy.Start()) },
		after: checkDeadlines,
	}
}

// checkDeadlines holds every session to the deadline that its creation was
// answered with, and to its state: none was let go.
func checkDeadlines(t *testing.T, e *faultEnv) {
	t.Helper()
	for id, deadline := range e.deadlines {
		s, err := e.store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id})
		must(t, err)
		if got := s.GetExpireTime().AsTime(); !got.Equal(deadline) {
			t.Errorf("session %s expires at %v, its creation said %v", id, got, deadline)
		}
		if got := s.GetExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()); got != faultTTL {
			t.Errorf("session %s lives for %v, want %v", id, got, faultTTL)
		}
		if s.GetEndTime() != nil || s.GetPhase() == sessionv1.Session_EXPIRED {
			t.Errorf("session %s was let go: %v", id, s.GetPhase())
		}
	}
	eventually(t, 5*time.Second, "every breaker closes", func() bool {
		_, _ = e.store.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageSize: 1})
		list, err := e.admin.ListBreakers(t.Context(), &sessionv1.ListBreakersRequest{})
		must(t, err)
		for _, b := range list.GetBreakers() {
			if b.GetState() != sessionv1.Breaker_CLOSED {
				return false
			}
		}
		return true
	})
}

func skewFault(name string, by time.Duration) fault {
	return fault{
		name: name, expect: "nobody notices: sessions live by the clock of Redis; the status has the difference", lasts: 2 * time.Second,
		inject: func(_ *testing.T, e *faultEnv) { e.skew.Store(int64(by)) },
		heal:   func(*testing.T, *faultEnv) {},
		after: func(t *testing.T, e *faultEnv) {
			t.Helper()
			checkDeadlines(t, e)
			checkLives(t, e)
			checkSkewed(t, e, by)
		},
	}
}

// checkLives holds the sessions to lives of faultTTL by the clock of Redis.
func checkLives(t *testing.T, e *faultEnv) {
	t.Helper()
	for id, deadline := range e.deadlines {
		// Times are cut to milliseconds.
		first, last := e.born[id][0].Add(faultTTL-10*time.Millisecond), e.born[id][1].Add(faultTTL+10*time.Millisecond)
		if deadline.Before(first) || deadline.After(last) {
			t.Fatalf("a session created between %v and %v expires at %v, %v too late", e.born[id][0], e.born[id][1], deadline, deadline.Sub(last))
		}
	}
}

// checkSkewed holds a store whose clock is wrong to what others know: sessions of
// another replica, which would be over by this clock, and those of its own that would
// have been over before; and to saying how wrong the clock is.
func checkSkewed(t *testing.T, e *faultEnv, by time.Duration) {
	t.Helper()
	right := sessionv1.NewStorageServiceClient(openStore(t, nil, "--redis-url", e.url))
	create := func(in sessionv1.StorageServiceClient) *sessionv1.Session {
		t.Helper()
		s, err := in.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(clockJump / 2)}})
		must(t, err)
		return s
	}
	for name, s := range map[string]*sessionv1.Session{"another replica's": create(right), "its own": create(e.store)} {
		for _, in := range []sessionv1.StorageServiceClient{e.store, right} {
			got := look(t, in, s.GetId())
			if got.GetPhase() == sessionv1.Session_EXPIRED || got.GetPhase() == sessionv1.Session_ENDED || !got.GetExpireTime().AsTime().Equal(s.GetExpireTime().AsTime()) {
				t.Errorf("%s session, created for half an hour, reads as %v", name, got)
			}
			ttl, err := in.GetTTL(t.Context(), &sessionv1.GetTTLRequest{Id: s.GetId()})
			must(t, err)
			if left := ttl.GetRemaining().AsDuration(); left > clockJump/2 || left < clockJump/2-time.Minute {
				t.Errorf("%s session has %v left, want half an hour", name, left)
			}
		}
	}
	eventually(t, 20*time.Second, "the status has the difference of the clocks", func() bool {
		d := e.status(t).GetClockDifference()
		return d != nil && (d.AsDuration()-by).Abs() < 2*time.Second
	})
}
