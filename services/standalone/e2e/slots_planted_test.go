//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestShardFaultsAreFound plants what a move could leave behind in a shard that is
// whole: each must be found, and nothing in the whole one.
func TestShardFaultsAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(r *rawShard)
		want  string
	}{
		"nothing":                      {func(*rawShard) {}, ""},
		"no deadline":                  {func(r *rawShard) { delete(r.scores["deadlines"], "live") }, "live is not in deadlines"},
		"a deadline that is late":      {func(r *rawShard) { r.scores["deadlines"]["live"] = 11 }, "1 ms after its deadline"},
		"a deadline of one that ended": {func(r *rawShard) { r.scores["deadlines"]["over"] = 5 }, "over, which is over, is in deadlines"},
		"a warning of one that ended":  {func(r *rawShard) { r.scores["warnings"]["over"] = 5 }, "is in warnings"},
		"a live one in retired":        {func(r *rawShard) { r.scores["retired"]["live"] = 5 }, "live is true, in retired true"},
		"one that ended in no list":    {func(r *rawShard) { delete(r.scores["retired"], "over") }, "live is false, in retired false"},
		"a user lacks a session":       {func(r *rawShard) { r.members["by-user"] = nil }, "in by-user false"},
		"a project lacks a session":    {func(r *rawShard) { r.members["by-project"] = nil }, "in by-project false"},
		"a user has one that ended": {func(r *rawShard) {
			r.members["by-user"] = append(r.members["by-user"], "u\x00p\x00over")
		}, "in by-user true"},
		"an entry without a record":   {func(r *rawShard) { r.members["by-user"] = append(r.members["by-user"], "u\x00p\x00gone") }, "by-user has gone"},
		"a deadline without a record": {func(r *rawShard) { r.scores["deadlines"]["gone"] = 5 }, "deadlines has gone"},
		"a log without a record":      {func(r *rawShard) { r.parts["events"] = append(r.parts["events"], "gone") }, "events of gone"},
		"half a record":               {func(r *rawShard) { r.sessions["live"] = rawSession{} }, "no state"},
	} {
		t.Run(name, func(t *testing.T) {
			r := rawShard{
				sessions: map[string]rawSession{
					"live": {state: "0", expire: 10, byUser: "u\x00p\x00live", byProject: "p\x00u\x00live"},
					"over": {state: "1", expire: 10, byUser: "u\x00p\x00over", byProject: "p\x00u\x00over"},
				},
				scores: map[string]map[string]float64{
					"deadlines": {"live": 9}, "warnings": {"live": 5}, "retired": {"over": 20},
				},
				members: map[string][]string{"by-user": {"u\x00p\x00live"}, "by-project": {"p\x00u\x00live"}},
				parts:   map[string][]string{"events": {"live", "over"}},
			}
			c.plant(&r)
			if got := strings.Join(r.faults(), "; "); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}

// TestSplitOrders: the parts of every order are all keys, once each, in more than
// one part.
func TestSplitOrders(t *testing.T) {
	var keys []string
	for _, kind := range []string{"deadlines", "warnings", "retired", "by-user", "by-project", "feed", "groups", "meta"} {
		keys = append(keys, "stoker:{s0}:"+kind)
	}
	for _, kind := range []string{"session", "events", "ids", "request"} {
		for i := range 12 {
			keys = append(keys, "stoker:{s0}:"+kind+":"+strings.Repeat("x", i+1))
		}
	}
	slices.Sort(keys)
	firsts := map[string]bool{}
	for _, o := range splitOrders {
		parts := o.parts(slices.Clone(keys), 7)
		if got := slices.Sorted(slices.Values(slices.Concat(parts...))); !slices.Equal(got, keys) || len(parts) < 2 || len(parts) >= splitRounds {
			t.Errorf("%s: %d keys in %d parts, want %d in 2 to %d", o.name, len(got), len(parts), len(keys), splitRounds-1)
		}
		firsts[strings.Join(parts[0], " ")] = true
	}
	if len(firsts) != len(splitOrders) {
		t.Errorf("%d orders begin with %d different parts", len(splitOrders), len(firsts))
	}
}

// TestShardOfAnID: the shard that the checks read out of an id is the one that the
// store has put the session on.
func TestShardOfAnID(t *testing.T) {
	store := sessionv1.NewStorageServiceClient(openStore(t, nil, "--storage", "memory", "--shards", "3"))
	seen := map[int]bool{}
	for range 60 {
		s, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{})
		must(t, err)
		seen[shardOf(s.GetId())] = true
	}
	if len(seen) != 3 || !seen[0] || !seen[1] || !seen[2] {
		t.Errorf("sessions of a store with 3 shards are on %v", seen)
	}
}
