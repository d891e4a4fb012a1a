package storagetest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

func (fx Fixture) explain(t TB, id string) storage.Explanation {
	t.Helper()
	e, err := fx.Store.Explain(t.Context(), id)
	ok(t, err)
	return e
}

func (fx Fixture) report(t TB, a storage.Activity) {
	t.Helper()
	res, err := fx.Store.Extend(t.Context(), []storage.Activity{a})
	ok(t, err)
	ok(t, res[0].Err)
}

// story spells decisions as outcome, reports, activities; the latest first.
func story(e storage.Explanation) string {
	var out []string
	for _, d := range e.Decisions {
		out = append(out, fmt.Sprintf("%v x%d (%d)", d.GetOutcome(), d.GetRepeats(), d.GetCoalesced()))
	}
	return strings.Join(out, ", ")
}

func explainCases() []Case {
	return []Case{
		{"explain/every outcome, with its numbers", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann")
			s := fx.get(t, id)
			equal(t, "before any", story(fx.explain(t, id)), "")
			fx.pass(0.5)
			fx.extend(t, id, "1", fx.since(s, 0.4))
			fx.extend(t, id, "2", fx.since(s, 0.5))
			fx.pass(1.5)
			fx.extend(t, id, "3", fx.since(s, 1.9))
			fx.pass(4)
			fx.extend(t, id, "4", fx.since(s, 5.9))
			fx.pass(4)
			fx.extend(t, id, "5", fx.since(s, 9.9))
			fx.pass(4.5)
			fx.extend(t, id, "6", fx.since(s, 14.2))
			e := fx.explain(t, id)
			equal(t, "decisions", story(e), "TOO_LATE x1 (1), CAPPED x1 (1), EXTENDED x1 (1), EXTENDED x1 (1), NOT_NEEDED x2 (2)")
			for i, want := range []string{"after the deadline", "2 of 2 extensions", "extension 2 of 2", "extension 1 of 2", "left, extends below"} {
				if got := e.Decisions[i].GetReason(); !strings.Contains(got, want) {
					t.Errorf("decision %d: %q, want %q in it", i, got, want)
				}
			}
			first := e.Decisions[3]
			equal(t, "event", first.GetEventId(), "3")
			equal(t, "activity", first.GetActivityTime().AsTime(), fx.since(s, 1.9))
			equal(t, "kind", first.GetActivityKind(), "input")
			equal(t, "deadline before", first.GetExpireTimeBefore().AsTime(), fx.since(s, 6))
			equal(t, "deadline after", first.GetExpireTimeAfter().AsTime(), fx.since(s, 10))
			if at := first.GetTime().AsTime(); at.Before(fx.since(s, 1.9)) || at.After(fx.Now()) {
				t.Errorf("taken at %v", at)
			}
			equal(t, "counts", fmt.Sprint(e.Counts), "map[input:5]")
			equal(t, "kind of the latest", e.Kind, "input")
		}},
		{"explain/counts by kind, and a report sent again only once", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			s := fx.get(t, id)
			fx.pass(1)
			a := storage.Activity{SessionID: id, Time: fx.since(s, 0.5), Kind: "chat", EventID: "e", Counts: map[string]int64{"chat": 2, "input": 40}}
			for range 3 {
				fx.report(t, a)
			}
			e := fx.explain(t, id)
			equal(t, "decisions", story(e), "NOT_NEEDED x1 (42)")
			if want := map[string]int64{"chat": 2, "input": 40}; !maps.Equal(e.Counts, want) {
				t.Errorf("counts %v, want %v", e.Counts, want)
			}
			// An earlier activity that comes later is counted, and not the latest.
			fx.report(t, storage.Activity{SessionID: id, Time: fx.since(s, 0.2), Kind: "chain", EventID: "f"})
			e = fx.explain(t, id)
			equal(t, "decisions", story(e), "NOT_NEEDED x2 (43)")
			equal(t, "kind of the latest", e.Kind, "chat")
			equal(t, "chain", e.Counts["chain"], int64(1))
			for n := range 40 {
				fx.report(t, storage.Activity{SessionID: id, Time: fx.since(s, 0.6), Kind: fmt.Sprint("k", n), EventID: fmt.Sprint("k", n)})
			}
			e = fx.explain(t, id)
			sum := int64(0)
			for _, n := range e.Counts {
				sum += n
			}
			equal(t, "all counted", sum, int64(83))
			equal(t, "kinds", len(e.Counts), lifetime.MaxKinds+1)
			// chat, input, chain and k0 to k28 fill the table.
			equal(t, "further kinds", e.Counts[lifetime.OtherKind], int64(3+40-lifetime.MaxKinds))
		}},
		{"explain/keeps the latest decisions, and those of a session that is over", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", func(p *sessionv1.TTLPolicy) {
				p.Strategy = sessionv1.TTLPolicy_EVERY_ACTIVITY
				most := int32(20)
				p.MaxExtensions, p.BaseTtl = &most, durationpb.New(1000*time.Hour)
			})
			s := fx.get(t, id)
			fx.pass(1)
			for n := range 12 {
				fx.extend(t, id, fmt.Sprint(n), fx.since(s, 0.5))
			}
			e := fx.explain(t, id)
			equal(t, "decisions", len(e.Decisions), lifetime.MaxDecisions)
			equal(t, "the latest", e.Decisions[0].GetEventId(), "11")
			equal(t, "the oldest", e.Decisions[lifetime.MaxDecisions-1].GetEventId(), fmt.Sprint(12-lifetime.MaxDecisions))
			_, err := fx.Store.End(t.Context(), id, "done")
			ok(t, err)
			fx.extend(t, id, "late", fx.since(s, 0.9))
			e = fx.explain(t, id)
			equal(t, "over", e.Decisions[0].GetOutcome(), over)
			equal(t, "counts", fmt.Sprint(e.Counts), "map[input:12]")
		}},
		{"explain/of nothing", func(t TB, fx Fixture) {
			for _, id := range []string{sessionid.New(2), "nonsense"} {
				if _, err := fx.Store.Explain(t.Context(), id); !errors.Is(err, storage.ErrNotFound) {
					t.Errorf("%q: %v", id, err)
				}
			}
		}},
	}
}
