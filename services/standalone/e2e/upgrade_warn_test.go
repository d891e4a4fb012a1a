//go:build e2e

package e2e

import (
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestRollingUpgradeWarnsOnce: the new version marks for which deadline it has
// appended session:expiring, the old one does not. A session that the new version
// has warned of its first deadline, and the old one of its second, is not warned
// of the second again, neither by the census nor by a full repair.
func TestRollingUpgradeWarnsOnce(t *testing.T) {
	oldVersion.binary(t, "sessionstore")
	for name, v := range map[string]struct {
		census string
		repair bool
	}{"census": {"100ms", false}, "repair": {"0", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			r := newUpgradeReplica(t, "A", "--redis-url", redis.URL(), "--shards", "1", "--sweep-interval", "50ms")
			r.start(t, oldVersion) // so that the format is 1
			r.stop(t, syscall.SIGTERM)
			r.start(t, newVersion, "--census-interval=0")
			const below = 6 * time.Second
			s, err := r.store().CreateSession(t.Context(), &sessionv1.CreateSessionRequest{TtlPolicy: &sessionv1.TTLPolicy{
				BaseTtl: durationpb.New(below), Extension: durationpb.New(3 * time.Second), ExtendBelow: durationpb.New(below), MaxExtensions: proto.Int32(1),
			}})
			must(t, err)
			warned := func() map[string]int {
				out := map[string]int{}
				for _, e := range allEvents(t, r.store(), s.GetId()) {
					if e.GetType() == "session:expiring" {
						out[e.GetData().GetStructValue().GetFields()["expireTime"].GetStringValue()]++
					}
				}
				return out
			}
			eventually(t, 5*time.Second, "the new version warns", func() bool { return len(warned()) == 1 })
			r.stop(t, syscall.SIGTERM)
			r.start(t, oldVersion)
			x, err := r.store().ExtendTTL(t.Context(), &sessionv1.ExtendTTLRequest{Id: s.GetId(), ActivityKind: "input"})
			must(t, err)
			if x.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
				t.Fatalf("extend: %v", x)
			}
			eventually(t, below, "the old version warns", func() bool { return len(warned()) == 2 })
			r.stop(t, syscall.SIGTERM)
			r.start(t, newVersion, "--census-interval="+v.census)
			if v.repair {
				if got := repairWith(t, r.grpc); got.GetRestored() != 0 {
					t.Errorf("the repair: %v, want nothing restored", got)
				}
			}
			time.Sleep(time.Second)
			if left := time.Until(x.GetAfter().GetExpireTime().AsTime()); left < time.Second {
				t.Fatalf("%v are left, too little to be warned again", left)
			}
			for deadline, n := range warned() {
				if n != 1 {
					t.Errorf("%d session:expiring for the deadline %s, want 1", n, deadline)
				}
			}
		})
	}
}
