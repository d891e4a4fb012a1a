//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
)

// evictionPolicies are all but noeviction.
var evictionPolicies = []string{"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"}

// evictionFaults are rows of the matrix in which Redis is full and drops keys. What it
// drops is gone; the status must have warned of it before.
func evictionFaults() []fault {
	var out []fault
	for _, policy := range evictionPolicies {
		out = append(out, fault{
			name: "out of memory, " + policy, expect: "acknowledged writes are lost; the status warns of the policy from the start",
			evicts: true, either: true, warns: "eviction-policy", lasts: time.Second,
			redis: []string{"--maxmemory-policy", policy},
			inject: func(t *testing.T, e *faultEnv) {
				if w := e.warning(t, "eviction-policy"); !strings.Contains(w.GetMessage(), policy) {
					t.Errorf("the warning %q does not name %s", w.GetMessage(), policy)
				}
				redistest.LimitMemory(t, e.redis, policy, -200_000)
			},
			heal: func(t *testing.T, e *faultEnv) {
				redistest.UnlimitMemory(t, e.redis)
				if redistest.InfoInt(t, e.redis, "stats", "evicted_keys") == 0 {
					t.Error("nothing was evicted")
				}
			},
		})
	}
	return out
}
