//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestChurnLeavesNothing: after 10,000 sessions were created, used and ended,
// and their retention has passed, no tracked session, index entry or key of
// theirs is left.
func TestChurnLeavesNothing(t *testing.T) {
	const sessions, workers = 10_000, 32
	retention := []string{"--retention", "2s"}
	flush := []string{"--flush-interval", "1s"}
	both(t, append(retention, flush...), map[string][]string{"sessionstore": retention, "activity": flush}, func(t *testing.T, d deployment) {
		var next, failed atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := next.Add(1); n <= sessions; n = next.Add(1) {
					if err := churn(d, n); err != nil {
						failed.Add(1)
						t.Error(err)
						return
					}
				}
			}()
		}
		wg.Wait()
		if failed.Load() > 0 {
			return
		}
		t.Logf("%d sessions in %.1fs", sessions, time.Since(begin).Seconds())
		if got := metric(t, d.storeMetrics, "stoker_sessions_created_total"); got < sessions {
			t.Errorf("stoker_sessions_created_total is %.0f, want at least %d", got, sessions)
		}
		eventually(t, 30*time.Second, "no tracked session is left", func() bool {
			return metric(t, d.activityMetrics, "stoker_activity_tracked_sessions") == 0
		})
		eventually(t, 60*time.Second, "no key of a session is left", func() bool {
			return leftovers(t, d) == 0
		})
		page := d.must(t, http.MethodGet, "/v1/sessions?pageSize=10", nil)
		if list := page["sessions"].([]any); len(list) != 0 {
			t.Errorf("still listed: %v", list)
		}
	})
}

// churn lives one session: create, use, end.
func churn(d deployment, n int64) error {
	status, s, err := d.call(http.MethodPost, "/v1/sessions", map[string]any{
		"user": fmt.Sprintf("user-%d", n%1000), "project": "churn", "requestId": fmt.Sprint(n),
	})
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("create: %d %v %w", status, s, err)
	}
	id := s["id"].(string)
	status, answer, err := d.call(http.MethodPost, "/v1/sessions/"+id+"/events", map[string]any{
		"events": []any{map[string]any{"type": "input:text"}, map[string]any{"type": "step:started"}},
	})
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("append: %d %v %w", status, answer, err)
	}
	status, answer, err = d.call(http.MethodPost, "/v1/sessions/"+id+":end", map[string]any{"reason": "done"})
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("end: %d %v %w", status, answer, err)
	}
	return nil
}

// leftovers counts what is still kept per session: keys and index members in
// Redis, entries by the store's own count on the embedded store.
func leftovers(t *testing.T, d deployment) int {
	t.Helper()
	if d.redisAddr == "" {
		return int(metric(t, d.storeMetrics, "stoker_store_entries"))
	}
	// An empty sorted set is no key at all, so a key that is left is an entry that is left.
	host, port, _ := strings.Cut(d.redisAddr, ":")
	keys := strings.Fields(run(t, "redis-cli", "-h", host, "-p", port, "--scan", "--pattern", "stoker:*"))
	n := 0
	for _, k := range keys {
		for _, kind := range []string{":session:", ":events:", ":ids:", ":request:", ":deadlines", ":warnings", ":retired", ":by-user", ":by-project"} {
			if strings.Contains(k, kind) {
				n++
			}
		}
	}
	return n
}
