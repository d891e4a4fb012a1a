package memory_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestExtendIsTheReference sends any activities in any order to a store, which
// is sometimes closed and opened, and expects what lifetime.Extend says.
func TestExtendIsTheReference(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seconds := func(name string, from, to int) *durationpb.Duration {
			return durationpb.New(time.Duration(rapid.IntRange(from, to).Draw(rt, name)) * time.Second)
		}
		c := storagetest.NewClock()
		dir := t.TempDir()
		s := open(t, options(c, dir))
		in := session(c.Now(), "ann")
		policy := lifetime.Resolve(&sessionv1.TTLPolicy{
			BaseTtl: seconds("base", 5, 40), Extension: seconds("extension", 1, 20), ExtendBelow: seconds("below", 1, 20),
			MinInterval: seconds("interval", 0, 10), MaxExtensions: proto.Int32(rapid.Int32Range(0, 40).Draw(rt, "most")),
			Strategy: sessionv1.TTLPolicy_Strategy(rapid.Int32Range(1, 3).Draw(rt, "strategy")),
		}, lifetime.DefaultPolicy())
		create := c.Now().UnixMilli()
		in.TtlPolicy, in.ExpireTime = policy, lifetime.Time(lifetime.Deadline(create, policy))
		x, _, err := s.Create(t.Context(), in, "")
		if err != nil {
			rt.Fatal(err)
		}
		terms := lifetime.NewTerms(create, policy)
		want := lifetime.State{Expire: lifetime.Deadline(create, policy), LastActivity: create}
		for range rapid.IntRange(1, 60).Draw(rt, "activities") {
			c.Advance(time.Duration(rapid.IntRange(0, 4000).Draw(rt, "pass")) * time.Millisecond)
			if rapid.IntRange(0, 15).Draw(rt, "reopen") == 0 {
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = open(t, options(c, dir))
			}
			at := c.Now().Add(time.Duration(rapid.IntRange(-9000, 2000).Draw(rt, "at")) * time.Millisecond)
			id := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e"}).Draw(rt, "event")
			var outcome sessionv1.ExtendTTLResponse_Outcome
			outcome, want = lifetime.Extend(terms, want, at.UnixMilli(), id, c.Now().UnixMilli())
			got, err := s.Extend(t.Context(), []storage.Activity{{SessionID: x.GetId(), Time: at, EventID: id}})
			if err != nil || got[0].Err != nil {
				rt.Fatal(err, got)
			}
			after := got[0].Response.GetAfter()
			if got[0].Response.GetOutcome() != outcome || lifetime.Millis(after.GetExpireTime()) != want.Expire ||
				after.GetExtensionCount() != want.Count || lifetime.Millis(after.GetLastActivityTime()) != want.LastActivity {
				rt.Fatalf("got %v, want %v with %+v", got[0].Response, outcome, want)
			}
			read, err := s.Get(t.Context(), x.GetId())
			if err != nil || lifetime.Millis(read.GetExpireTime()) != want.Expire || read.GetExtensionCount() != want.Count ||
				read.GetPhase() != lifetime.Phase(terms, want, c.Now().UnixMilli()) {
				rt.Fatalf("reads as %v (%v), want %+v", read, err, want)
			}
		}
		if err := s.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}
