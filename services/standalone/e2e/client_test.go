//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// call sends a JSON request and decodes the JSON answer. It is safe to use
// from other goroutines: it reports instead of failing.
func (d deployment) call(method, path string, body any) (status int, answer map[string]any, err error) {
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, d.http+path, r)
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, nil, err
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &answer); err != nil {
			return resp.StatusCode, nil, fmt.Errorf("%s %s answered %d %q: %w", method, path, resp.StatusCode, raw, err)
		}
	}
	return resp.StatusCode, answer, nil
}

// must is call for a request that has to succeed.
func (d deployment) must(t *testing.T, method, path string, body any) map[string]any {
	t.Helper()
	status, answer, err := d.call(method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	if status != http.StatusOK {
		t.Fatalf("%s %s answered %d: %v", method, path, status, answer)
	}
	return answer
}

// eventTypes counts a session's events by type, from the first kept on.
func (d deployment) eventTypes(t *testing.T, id string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	after := "0"
	for {
		page := d.must(t, http.MethodGet, "/v1/sessions/"+id+"/events?limit=1000&wait=1s&after="+after, nil)
		events, _ := page["events"].([]any)
		if len(events) == 0 {
			return counts
		}
		for _, e := range events {
			counts[e.(map[string]any)["type"].(string)]++
		}
		after = page["nextCursor"].(string)
		if page["pollAfter"] != "0s" {
			return counts
		}
	}
}

// samples calls fn for every sample of a Prometheus metric.
func samples(t *testing.T, url, name string, fn func(labels string, v float64)) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if !strings.HasPrefix(line, name) || (line[len(name)] != '{' && line[len(name)] != ' ') {
			continue
		}
		end := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		fn(line[len(name):end], v)
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
}

// metric sums the samples of a metric, which must be there.
func metric(t *testing.T, url, name string) float64 {
	t.Helper()
	sum, found := 0.0, false
	samples(t, url, name, func(_ string, v float64) { sum, found = sum+v, true })
	if !found {
		t.Fatalf("%s has no metric %s", url, name)
	}
	return sum
}

// metricWhere sums the samples with all of these labels, 0 for none.
func metricWhere(t *testing.T, url, name string, labels ...string) float64 {
	t.Helper()
	sum := 0.0
	samples(t, url, name, func(have string, v float64) {
		for _, l := range labels {
			if !strings.Contains(have, l) {
				return
			}
		}
		sum += v
	})
	return sum
}

// labelValues lists the values of a label.
func labelValues(t *testing.T, url, name, label string) []string {
	t.Helper()
	var out []string
	samples(t, url, name, func(have string, _ float64) {
		if _, rest, ok := strings.Cut(have, label+`="`); ok {
			v, _, _ := strings.Cut(rest, `"`)
			out = append(out, v)
		}
	})
	return out
}

// eventually waits until ok holds, for at most limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
