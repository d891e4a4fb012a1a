package lifetime

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func TestHistoryFoldsWhatChangedNothing(t *testing.T) {
	var h *History
	add := func(d Decision) { h = h.Add(d, map[string]int64{"input": d.Activities}, 0) }
	add(Decision{Outcome: notNeeded, Activities: 2, Repeats: 1, Activity: 1})
	add(Decision{Outcome: notNeeded, Activities: 3, Repeats: 1, Activity: 2})
	add(Decision{Outcome: extended, Activities: 1, Repeats: 1, Activity: 3})
	add(Decision{Outcome: extended, Activities: 1, Repeats: 1, Activity: 4})
	add(Decision{Outcome: capped, Activities: 1, Repeats: 1, Activity: 5})
	got := fmt.Sprint(len(h.Decisions), " ", h.Last, " ", h.Decisions[0].Activities, " ", h.Decisions[0].Repeats, " ", h.Decisions[0].Activity, " ", h.Counts)
	if want := "4 4 5 2 2 map[input:8]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestHistoryIsBounded and never changes what readers have.
func TestHistoryIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h *History
		reports, activities := int64(0), int64(0)
		for i := range rapid.IntRange(1, 100).Draw(t, "reports") {
			o := rapid.SampledFrom([]sessionv1.ExtendTTLResponse_Outcome{extended, notNeeded, capped, tooSoon}).Draw(t, "outcome")
			n := rapid.Int64Range(1, 9).Draw(t, "activities")
			kind := fmt.Sprint("k", rapid.IntRange(0, 99).Draw(t, "kind"))
			before, was := h, ""
			if before != nil {
				was = fmt.Sprint(*before)
			}
			d := Decision{Outcome: o, At: int64(i), Activities: n, Repeats: 1, Kind: kind}
			h = h.Add(d, map[string]int64{kind: n}, 0)
			reports++
			activities += n
			if before != nil && fmt.Sprint(*before) != was {
				t.Fatal("a history that was handed out has changed")
			}
			if len(h.Decisions) > MaxDecisions || len(h.Counts) > MaxKinds+1 {
				t.Fatalf("%d decisions, %d kinds", len(h.Decisions), len(h.Counts))
			}
			if last := h.Decisions[len(h.Decisions)-1]; last.At != int64(i) || h.Kind != kind {
				t.Fatalf("the last decision is %+v", last)
			}
		}
		counted := int64(0)
		for _, n := range h.Counts {
			counted += n
		}
		if counted != activities {
			t.Fatalf("counted %d of %d activities", counted, activities)
		}
		if h.Last == int64(len(h.Decisions)) {
			repeats := int64(0)
			for _, d := range h.Decisions {
				repeats += d.Repeats
			}
			if repeats != reports {
				t.Fatalf("%d of %d reports", repeats, reports)
			}
		}
	})
}

func TestHistoryCountsNothingThatCameTooLate(t *testing.T) {
	var h *History
	h = h.Add(Decision{Outcome: notNeeded, Activity: 5, Kind: "input", Activities: 1, Repeats: 1}, map[string]int64{"input": 1}, 0)
	h = h.Add(Decision{Outcome: tooLate, Activity: 9, Kind: "chat", Activities: 1, Repeats: 1}, map[string]int64{"chat": 1}, 5)
	h = h.Add(Decision{Outcome: notNeeded, Activity: 4, Kind: "chain", Activities: 1, Repeats: 1}, map[string]int64{"chain": 1}, 5)
	if got := fmt.Sprint(h.Kind, h.Counts, len(h.Decisions)); got != "inputmap[chain:1 input:1] 3" {
		t.Error(got)
	}
}

func TestHistoryKnowsAReportThatComesAgain(t *testing.T) {
	d := Decision{Outcome: extended, EventID: "e", Activity: 5, Repeats: 1, Activities: 1}
	var h *History
	if h.Repeats(d) {
		t.Error("an empty history knows it")
	}
	h = h.Add(d, nil, 0)
	if !h.Repeats(d) {
		t.Error("not recognised")
	}
	for _, other := range []Decision{{EventID: "e", Activity: 6}, {EventID: "f", Activity: 5}, {Activity: 5}} {
		if h.Repeats(other) {
			t.Errorf("%+v taken for it", other)
		}
	}
}
