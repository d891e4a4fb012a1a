//go:build e2e

package e2e

import (
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
)

// TestRedisGoesAndComesBack: while Redis is away a session that was seen is
// answered as it was, and marked; whatever else is asked is "unavailable" and
// never "not found"; readiness says so, and everything works again by itself,
// the activity service included.
func TestRedisGoesAndComesBack(t *testing.T) {
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	d := embedded(t, "--redis-url", redis.URL(), "--flush-interval", "1s", "--breaker-delay", "1s")
	s := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann", "ttlPolicy": map[string]any{"baseTtl": "60s", "extension": "60s", "extendBelow": "59s"}})
	at := "/v1/sessions/" + s["id"].(string)
	if err := redis.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{at, at + "/ttl"} {
		if code, h := d.head(t, path); code != http.StatusOK || h.Get("Stoker-Served-By") != "fallback" || !age.MatchString(h.Get("Stoker-Stale-For")) {
			t.Errorf("%s answered %d %v, want what is remembered, marked", path, code, h)
		}
	}
	other := []byte(at) // an id that nobody has
	if last := len(other) - 1; other[last-9] == 'a' {
		other[last-9] = 'b'
	} else {
		other[last-9] = 'a'
	}
	if code, h := d.head(t, string(other)); code != http.StatusServiceUnavailable || h.Get("Retry-After") == "" || h.Get("Stoker-Served-By") != "" {
		t.Errorf("a session never seen: answered %d %v, want 503 with Retry-After", code, h)
	}
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{http.MethodGet, at + "/events?wait=1s&after=0", nil},
		{http.MethodGet, "/v1/sessions", nil},
		{http.MethodPost, "/v1/sessions", map[string]any{"user": "ben"}},
		{http.MethodPost, at + "/events", map[string]any{"events": []any{map[string]any{"id": "1", "type": "input:text"}}}},
		// Whether it has ended is not known from then on, so it is not read, either.
		{http.MethodPost, at + ":end", map[string]any{}},
		{http.MethodGet, at, nil},
	} {
		status, answer, err := d.call(c.method, c.path, c.body)
		if err != nil || status != http.StatusServiceUnavailable {
			t.Errorf("%s %s answered %d %v %v, want 503", c.method, c.path, status, answer, err)
		}
	}
	eventually(t, 5*time.Second, "readiness says that the store is away", func() bool {
		resp, err := http.Get(d.http + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	d.checkBreakers(t, redis.Addr)
	if err := redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the session can be read again", func() bool {
		code, h := d.head(t, at)
		if code == http.StatusNotFound {
			t.Fatalf("answered %d %v", code, h)
		}
		return code == http.StatusOK && h.Get("Stoker-Served-By") == ""
	})
	eventually(t, 10*time.Second, "activity extends the session again", func() bool {
		_, _, _ = d.call(http.MethodPost, at+"/events", map[string]any{"events": []any{map[string]any{"type": "input:text"}}})
		return d.must(t, http.MethodGet, at, nil)["extensionCount"] == 1.0
	})
}

// age is how a header spells how old an answer is.
var age = regexp.MustCompile(`^\d+(\.\d+)?s$`)

// head reads a path and returns the status and the headers.
func (d deployment) head(t *testing.T, path string) (int, http.Header) {
	t.Helper()
	resp, err := http.Get(d.http + path)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header
}

// checkBreakers drives the breakers until one is open, and looks at it as an
// operator does.
func (d deployment) checkBreakers(t *testing.T, node string) {
	t.Helper()
	var open map[string]any
	eventually(t, 5*time.Second, "a breaker is open", func() bool {
		_, _, _ = d.call(http.MethodGet, "/v1/sessions?pageSize=1", nil)
		list, _ := d.must(t, http.MethodGet, "/v1/admin/breakers", nil)["breakers"].([]any)
		for _, b := range list {
			b, _ := b.(map[string]any)
			if b["class"] == "read" && b["state"] == "OPEN" {
				open = b
			}
		}
		return open != nil
	})
	if open["name"] != "read@"+node || open["node"] != node || open["lastFailureTime"] == nil || open["totalTrips"] == "0" || open["opensAt"] != 5.0 {
		t.Errorf("breaker %v", open)
	}
	if s := d.must(t, http.MethodGet, "/v1/admin/status", nil); s["degraded"] != true || s["reachable"] == true {
		t.Errorf("status %v", s)
	}
	resp, err := http.Get(d.http + "/v1/sessions?pageSize=1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("answered %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	// By hand: one that is set to OPEN stays so until it is set again.
	set := d.must(t, http.MethodPost, "/v1/admin/breakers/read@"+node+":set", map[string]any{"state": "OPEN"})
	if set["forced"] != true || set["state"] != "OPEN" {
		t.Errorf("set to OPEN: %v", set)
	}
	if set = d.must(t, http.MethodPost, "/v1/admin/breakers/read@"+node+":set", map[string]any{"state": "HALF_OPEN"}); set["forced"] == true {
		t.Errorf("set to HALF_OPEN: %v", set)
	}
}
