//go:build e2e

package e2e

import (
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// clockJump is how far the store's clock jumps. The clock of Redis, by which
// deadlines are enforced, does not.
const clockJump = time.Hour

// clockFaults are rows of the matrix: the store's clock jumps, and stays there,
// while Redis is away for a second.
var clockFaults = []fault{
	clockFault("the store's clock jumps an hour ahead, in an outage", clockJump),
	clockFault("the store's clock jumps an hour back, in an outage", -clockJump),
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
