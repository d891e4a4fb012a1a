//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestKillLosesNothing kills `stoker run --data-dir` with SIGKILL under load,
// three times, and reads back every write that was acknowledged.
func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]int{} // session -> events acknowledged
	total := 0
	for round := range 3 {
		d := deployment{http: "http://" + freeAddr(t), grpc: freeAddr(t)}
		p := start(t, "stoker", "run", "--http-addr", d.http[len("http://"):], "--grpc-addr", d.grpc, "--data-dir", dir)
		ready(t, d.http+"/readyz", p)
		for id, n := range acked {
			if got := d.eventTypes(t, id)["input:text"]; got < n {
				t.Fatalf("round %d: session %s has %d of %d acknowledged events", round, id, got, n)
			}
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				status, s, err := d.call(http.MethodPost, "/v1/sessions", map[string]any{"user": fmt.Sprintf("user-%d-%d", round, w)})
				if err != nil || status != http.StatusOK {
					return
				}
				id := s["id"].(string)
				mu.Lock()
				acked[id] = 0
				mu.Unlock()
				for n := 0; ; n++ {
					status, _, err := d.call(http.MethodPost, "/v1/sessions/"+id+"/events",
						map[string]any{"events": []any{map[string]any{"id": fmt.Sprint(n), "type": "input:text"}}})
					if err != nil || status != http.StatusOK {
						return
					}
					mu.Lock()
					acked[id]++
					total++
					mu.Unlock()
				}
			}()
		}
		eventually(t, 30*time.Second, "a thousand more writes were acknowledged", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return total >= 1000*(round+1) || acked != nil && atLeast(acked, 900)
		})
		p.stop(t, syscall.SIGKILL)
		wg.Wait()
	}
	t.Logf("%d acknowledged events in %d sessions, none lost", total, len(acked))
}

// atLeast says whether any log nears its bound, after which the oldest events
// leave it by design.
func atLeast(acked map[string]int, n int) bool {
	for _, have := range acked {
		if have >= n {
			return true
		}
	}
	return false
}
