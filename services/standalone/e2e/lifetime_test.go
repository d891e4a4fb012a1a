//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

var shortPolicy = map[string]any{"baseTtl": "6s", "extension": "4s", "maxExtensions": 2, "extendBelow": "5s"}

// both runs a test on the embedded store and on Redis with the three binaries.
func both(t *testing.T, embeddedArgs []string, extra map[string][]string, test func(t *testing.T, d deployment)) {
	t.Run("embedded", func(t *testing.T) { test(t, embedded(t, embeddedArgs...)) })
	t.Run("redis", func(t *testing.T) { test(t, separate(t, extra)) })
}

// TestActivityExtendsToTheCap: a session in use lives to its cap and not
// beyond; one with only automated events, and one that is only polled, die at
// their first deadline.
func TestActivityExtendsToTheCap(t *testing.T) {
	both(t, nil, nil, func(t *testing.T, d deployment) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()

		create := func(user string) string {
			s := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": user, "ttlPolicy": shortPolicy})
			if s["phase"] != "ACTIVE" || s["extensionCount"] != 0.0 {
				t.Fatalf("fresh session: %v", s)
			}
			return s["id"].(string)
		}
		everySecond := func(do func(n int)) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				tick := time.NewTicker(time.Second)
				defer tick.Stop()
				for n := 1; ; n++ {
					do(n)
					select {
					case <-tick.C:
					case <-ctx.Done():
						return
					}
				}
			}()
		}
		send := func(id, typ string) func(int) {
			return func(n int) {
				_, _, _ = d.call(http.MethodPost, "/v1/sessions/"+id+"/events",
					map[string]any{"events": []any{map[string]any{"id": fmt.Sprint(n), "type": typ}}})
			}
		}
		begin := time.Now()
		busy, automated, polled := create("busy"), create("automated"), create("polled")
		everySecond(send(busy, "input:text"))
		everySecond(send(automated, "registry:updated"))
		everySecond(func(int) {
			_, _, _ = d.call(http.MethodGet, "/v1/sessions/"+polled+"/events?wait=1s&after=0", nil)
			_, _, _ = d.call(http.MethodGet, "/v1/sessions/"+polled, nil)
		})

		died := map[string]time.Duration{}
		eventually(t, 20*time.Second, "all three sessions expired", func() bool {
			for _, id := range []string{busy, automated, polled} {
				if _, dead := died[id]; dead {
					continue
				}
				if s := d.must(t, http.MethodGet, "/v1/sessions/"+id, nil); s["phase"] == "EXPIRED" {
					died[id] = time.Since(begin)
				}
			}
			return len(died) == 3
		})
		for _, c := range []struct {
			name, id   string
			at         time.Duration
			extensions float64
		}{{"input:text every second", busy, 14 * time.Second, 2}, {"registry:updated only", automated, 6 * time.Second, 0}, {"polls only", polled, 6 * time.Second, 0}} {
			t.Logf("%-24s lived %.2fs", c.name, died[c.id].Seconds())
			if off := died[c.id] - c.at; off < -200*time.Millisecond || off > time.Second {
				t.Errorf("%s: died at %s, want %s", c.name, died[c.id], c.at)
			}
			eventually(t, 5*time.Second, c.name+" has its session:expired", func() bool {
				return d.eventTypes(t, c.id)["session:expired"] == 1
			})
			counts := d.eventTypes(t, c.id)
			if counts["session:extended"] != int(c.extensions) || counts["session:created"] != 1 {
				t.Errorf("%s: events %v", c.name, counts)
			}
			if s := d.must(t, http.MethodGet, "/v1/sessions/"+c.id, nil); s["extensionCount"] != c.extensions {
				t.Errorf("%s: extensionCount %v, want %v", c.name, s["extensionCount"], c.extensions)
			}
		}
	})
}

// TestCoalescing: a hundred events a second into one session cause no more
// ExtendTTL calls than one per flush interval.
func TestCoalescing(t *testing.T) {
	const flush = 2 * time.Second
	args := []string{"--flush-interval", flush.String()}
	both(t, args, map[string][]string{"activity": args}, func(t *testing.T, d deployment) {
		id := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann"})["id"].(string)
		begin := time.Now()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		sent := 0
		for ; time.Since(begin) < 10*time.Second; sent++ {
			d.must(t, http.MethodPost, "/v1/sessions/"+id+"/events", map[string]any{"events": []any{map[string]any{"type": "input:text"}}})
			<-tick.C
		}
		// The last activity must arrive, too: within a flush interval.
		var last time.Time
		eventually(t, 2*flush, "the last activity was delivered", func() bool {
			s := d.must(t, http.MethodGet, "/v1/sessions/"+id, nil)
			last, _ = time.Parse(time.RFC3339Nano, s["lastActivityTime"].(string))
			return last.After(begin.Add(9900 * time.Millisecond))
		})
		items := metric(t, d.activityMetrics, "stoker_activity_extend_items_total")
		calls := metric(t, d.activityMetrics, "stoker_activity_extend_calls_total")
		most := float64(time.Since(begin)/flush) + 1
		t.Logf("%d events in %.1fs: %.0f calls, %.0f items, at most %.0f allowed", sent, time.Since(begin).Seconds(), calls, items, most)
		if sent < 700 {
			t.Errorf("sent only %d events, too few to show anything", sent)
		}
		if items < 1 || items > most || calls > most {
			t.Errorf("%.0f calls with %.0f items, want 1 to %.0f", calls, items, most)
		}
	})
}
