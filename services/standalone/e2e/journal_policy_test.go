//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestCreationsAfterARestartInAnOutage: a store that is killed and started again
// while Redis is down creates sessions, each with the policy of its project. Where
// nothing is known of a project it says so, unless the session needs no other policy
// than its own.
func TestCreationsAfterARestartInAnOutage(t *testing.T) {
	r := newReplica(t, t.TempDir())
	r.start(t)
	_, err := r.store.SetPolicy(t.Context(), &sessionv1.SetPolicyRequest{Project: "acme", Policy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(3 * time.Hour)}})
	must(t, err)
	kept := filepath.Join(r.dir, "policies")
	eventually(t, 10*time.Second, "the policy is kept", func() bool {
		b, _ := os.ReadFile(kept)
		return strings.Contains(string(b), "acme")
	})
	must(t, r.redis.Kill())
	r.kill(t)
	r.start(t)
	made := map[string]time.Duration{}
	for project, ttl := range map[string]time.Duration{"acme": 3 * time.Hour, "other": 24 * time.Hour, "": 24 * time.Hour} {
		s, err := r.store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann", Project: project})
		if err != nil {
			t.Fatalf("project %q: %v", project, err)
		}
		made[s.GetId()] = ttl
	}
	must(t, r.redis.Restart(t.Context()))
	eventually(t, 20*time.Second, "all is replayed", func() bool { return r.depth(t) == 0 })
	for id, ttl := range made {
		s, err := r.store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id})
		must(t, err)
		if got := s.GetExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()); got != ttl || s.GetTtlPolicy().GetBaseTtl().AsDuration() != ttl {
			t.Errorf("project %q: lives for %s by %v, want %s", s.GetProject(), got, s.GetTtlPolicy(), ttl)
		}
	}

	// Nothing is known by a replica that was never there.
	must(t, r.redis.Kill())
	r.kill(t)
	r.dir = t.TempDir()
	r.start(t)
	_, err = r.store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann", Project: "acme"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "does not know the project's policy") {
		t.Errorf("nothing known: %v", err)
	}
	own := &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(time.Hour), Extension: durationpb.New(time.Hour), MaxExtensions: proto.Int32(2), ExtendBelow: durationpb.New(time.Minute),
		MinInterval: durationpb.New(time.Minute), ActiveWindow: durationpb.New(time.Minute), MaxLifetime: durationpb.New(3 * time.Hour),
		Strategy: sessionv1.TTLPolicy_BELOW_THRESHOLD, ActivityRules: []*sessionv1.ActivityRule{{Pattern: "input:*", Kind: "input"}},
	}
	s, err := r.store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann", Project: "acme", TtlPolicy: own})
	if err != nil || !proto.Equal(s.GetTtlPolicy(), own) {
		t.Errorf("with a policy of its own: %v, %v", s, err)
	}
	must(t, r.redis.Restart(t.Context()))
	eventually(t, 20*time.Second, "all is replayed", func() bool { return r.depth(t) == 0 })
	if n := metric(t, r.metrics, "stoker_journal_dead_letters"); n != 0 {
		t.Errorf("%v dead letters", n)
	}
}
