package memory_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestDecisionsSurviveRestartsAndSnapshots: what was decided is told the same
// from the log, from a snapshot, and from both.
func TestDecisionsSurviveRestartsAndSnapshots(t *testing.T) {
	c, dir := storagetest.NewClock(), t.TempDir()
	s := open(t, options(c, dir))
	p := lifetime.Resolve(&sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(time.Hour), Strategy: sessionv1.TTLPolicy_EVERY_ACTIVITY, MaxExtensions: proto.Int32(12),
	}, lifetime.DefaultPolicy())
	now := c.Now().UnixMilli()
	sess, _, err := s.Create(t.Context(), &sessionv1.Session{
		Id: sessionid.New(3), Project: "acme", User: "ann", TtlPolicy: p, Revision: 1,
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
		ExpireTime: lifetime.Time(lifetime.Deadline(now, p)),
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		c.Advance(time.Second)
		if _, err := s.Extend(t.Context(), []storage.Activity{{
			SessionID: sess.GetId(), Kind: fmt.Sprint("k", n%3), EventID: fmt.Sprint("e", n), Counts: map[string]int64{fmt.Sprint("k", n%3): int64(n + 1)},
		}}); err != nil {
			t.Fatal(err)
		}
		want, err := s.Explain(t.Context(), sess.GetId())
		if err != nil {
			t.Fatal(err)
		}
		if n%4 == 1 {
			if err := s.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, options(c, dir))
		got, err := s.Explain(t.Context(), sess.GetId())
		if err != nil {
			t.Fatal(err)
		}
		if a, b := describe(want), describe(got); a != b {
			t.Fatalf("after restart %d:\n%s\nwant\n%s", n, b, a)
		}
	}
}

func describe(e storage.Explanation) string {
	out := fmt.Sprintln(e.Kind, e.Counts)
	for _, d := range e.Decisions {
		out += fmt.Sprintln(d.GetTime().AsTime(), d.GetEventId(), d.GetActivityKind(), d.GetReason(), d.GetCoalesced(), d.GetRepeats(), d.GetExpireTimeAfter().AsTime())
	}
	return out
}
