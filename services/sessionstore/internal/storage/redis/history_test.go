package redis_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// TestHistoryAgreesWithItsReference runs random reports against the script and
// against lifetime.History: what is remembered must agree at every look, whatever
// kinds the reports have, and whether they come one by one or stand for many.
func TestHistoryAgreesWithItsReference(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	rapid.Check(t, func(t *rapid.T) {
		p := lifetime.Resolve(&sessionv1.TTLPolicy{
			BaseTtl: durationpb.New(100 * time.Second), Extension: durationpb.New(50 * time.Second),
			MaxExtensions: proto.Int32(rapid.Int32Range(0, 20).Draw(t, "max")), ExtendBelow: durationpb.New(60 * time.Second),
			MinInterval: durationpb.New(5 * time.Second), Strategy: sessionv1.TTLPolicy_Strategy(rapid.IntRange(1, 3).Draw(t, "strategy")),
		}, lifetime.DefaultPolicy())
		created := time.Now().UnixMilli() - 3_000_000 // no activity is from the future
		terms := lifetime.NewTerms(created, p)
		state := lifetime.State{Expire: lifetime.Deadline(created, p), LastActivity: created}
		in := &sessionv1.Session{
			Id: sessionid.New(0), Revision: 1, CreateTime: lifetime.Time(created), UpdateTime: lifetime.Time(created),
			LastActivityTime: lifetime.Time(created), ExpireTime: lifetime.Time(state.Expire), TtlPolicy: p,
		}
		createdThen(t, s, in)
		most := rapid.SampledFrom([]int{2, 4, 2 * lifetime.MaxKinds}).Draw(t, "kinds")
		kinds := rapid.Map(rapid.IntRange(0, most), func(i int) string {
			if i == 0 {
				return ""
			}
			return fmt.Sprint("kind-", i)
		})
		// Which of several new kinds in one report is one too many is left open.
		together := 1
		if most <= lifetime.MaxKinds {
			together = 2
		}
		var h *lifetime.History
		at := created
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			at += rapid.Int64Range(-3000, 12_000).Draw(t, "pass")
			a := storage.Activity{SessionID: in.GetId(), Time: time.UnixMilli(at), Kind: kinds.Draw(t, "kind")}
			if rapid.Bool().Draw(t, "named") {
				a.EventID = fmt.Sprint("e", rapid.IntRange(0, 3).Draw(t, "event"))
			}
			if rapid.IntRange(0, 3).Draw(t, "many") == 0 {
				a.Counts = rapid.MapOfN(kinds.Filter(func(k string) bool { return k != "" }), rapid.Int64Range(1, 9), 1, together).Draw(t, "counts")
			}
			res, err := s.Extend(t.Context(), []storage.Activity{a})
			if err != nil || res[0].Err != nil {
				t.Fatal(err, res[0].Err)
			}
			now := time.Now().UnixMilli()
			o, next := lifetime.Extend(terms, state, at, a.EventID, now)
			counts, sum := a.Stands()
			if d := lifetime.NewDecision(o, state, next, at, now, a.Kind, a.EventID, sum); !h.Repeats(d) {
				h = h.Add(d, counts, state.LastActivity)
			}
			state = next
			got, err := s.Explain(t.Context(), in.GetId())
			if err != nil {
				t.Fatal(err)
			}
			want := storage.Explain(h, terms)
			if got.Kind != want.Kind || !maps.Equal(got.Counts, want.Counts) || len(got.Decisions) != len(want.Decisions) {
				t.Fatalf("%+v:\ngot  %v %v, %d decisions\nwant %v %v, %d", a, got.Kind, got.Counts, len(got.Decisions), want.Kind, want.Counts, len(want.Decisions))
			}
			for i, d := range got.Decisions {
				d.Time = want.Decisions[i].Time // by the clock of Redis
				if !proto.Equal(d, want.Decisions[i]) {
					t.Fatalf("decision %d after %+v:\ngot  %v\nwant %v", i, a, d, want.Decisions[i])
				}
			}
		}
	})
}
