//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// TestGRPCSurface lists every RPC by reflection and calls each with grpcurl.
func TestGRPCSurface(t *testing.T) {
	both(t, nil, nil, func(t *testing.T, d deployment) {
		grpcurl, err := filepath.Abs("../../../.bin/grpcurl")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(grpcurl); err != nil {
			t.Fatalf("%v: run `make .bin/.gen` first", err)
		}
		id := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann", "project": "acme"})["id"].(string)
		gone := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "bob", "project": "acme"})["id"].(string)
		byID := fmt.Sprintf(`{"id":%q}`, id)
		// What each RPC is called with, and what the answer must contain. An
		// answer that is an error is one that the RPC has to give here.
		calls := []struct{ method, body, want string }{
			{"StorageService/CreateSession", `{"user":"eve","project":"acme"}`, `"phase": "ACTIVE"`},
			{"StorageService/GetSession", byID, id},
			{"StorageService/BatchGetSessions", fmt.Sprintf(`{"ids":[%q]}`, id), id},
			{"StorageService/UpdateSession", fmt.Sprintf(`{"id":%q,"session":{"labels":{"a":"b"}}}`, id), `"a": "b"`},
			{"StorageService/ListSessions", `{"project":"acme"}`, id},
			{"StorageService/ListActiveUsers", `{"project":"acme"}`, `"user": "ann"`},
			{"StorageService/GetTTL", byID, `"maxExtensions": 4`},
			{"StorageService/ExtendTTL", fmt.Sprintf(`{"id":%q,"activityKind":"input"}`, id), `"NOT_NEEDED"`},
			{"StorageService/ExplainTTL", byID, `"NOT_NEEDED"`},
			{"StorageService/BatchExtendTTL", fmt.Sprintf(`{"items":[{"id":%q}]}`, id), `"NOT_NEEDED"`},
			{"StorageService/AppendEvents", fmt.Sprintf(`{"id":%q,"events":[{"type":"input:text"}]}`, id), `"cursors"`},
			{"StorageService/ListEvents", fmt.Sprintf(`{"id":%q,"after":"0"}`, id), `"input:text"`},
			{"StorageService/SetPolicy", `{"project":"acme","policy":{"baseTtl":"3600s"}}`, `"3600s"`},
			{"StorageService/GetPolicy", `{"project":"acme"}`, `"3600s"`},
			{"StorageService/ListPolicies", `{}`, `"acme"`},
			{"StorageService/DeletePolicy", `{"project":"acme"}`, `{}`},
			{"StorageService/EndSession", fmt.Sprintf(`{"id":%q,"reason":"done"}`, gone), `"ENDED"`},
			{"StorageService/WatchEvents", fmt.Sprintf(`{"id":%q,"after":"0"}`, gone), `"session:ended"`},
			{"StorageService/DeleteSession", fmt.Sprintf(`{"id":%q}`, gone), `{}`},
			{"StorageService/RevokeUserSessions", `{"user":"eve","project":"acme"}`, `"count": 1`},
			{"StorageService/Feed", `{"open":{"group":"surface","consumer":"one"},"credits":1}`, `"assignment": true`},
			{"AdminService/ListBreakers", `{}`, `{`},
			{"AdminService/SetBreaker", `{"name":"none","state":"OPEN"}`, `NotFound`},
			{"AdminService/GetStoreStatus", `{}`, `"shards": 64`},
			{"AdminService/ListDeadLetters", `{}`, `{`},
			{"AdminService/RetryDeadLetter", `{"id":"none"}`, `NotFound`},
			{"AdminService/RepairIndexes", `{}`, `"done": true`},
			{"ActivityService/GetActivity", byID, id},
			{"ActivityService/ListInactiveSessions", `{"threshold":"3600s"}`, `{`},
		}
		covered := map[string]bool{}
		for _, c := range calls {
			service, pkg, addr := "", "stoker.session.v1.", d.grpc
			if strings.HasPrefix(c.method, "Activity") {
				pkg, addr = "stoker.activity.v1.", d.activityGRPC
			}
			service = pkg + c.method
			covered[strings.ReplaceAll(service, "/", ".")] = true
			out := runAny(t, grpcurl, "-plaintext", "-max-time", "5", "-d", c.body, addr, service)
			if !strings.Contains(out, c.want) {
				t.Errorf("%s %s answered %s, want %s in it", service, c.body, out, c.want)
			}
		}
		for _, where := range [][2]string{{d.grpc, "stoker.session.v1.StorageService"}, {d.grpc, "stoker.session.v1.AdminService"}, {d.activityGRPC, "stoker.activity.v1.ActivityService"}} {
			for _, m := range strings.Fields(run(t, grpcurl, "-plaintext", where[0], "list", where[1])) {
				if !covered[m] {
					t.Errorf("%s is listed by reflection and was not called", m)
				}
				delete(covered, m)
			}
		}
		for m := range covered {
			t.Errorf("%s was called and is not listed by reflection", m)
		}
		if out := run(t, grpcurl, "-plaintext", d.grpc, "grpc.health.v1.Health/Check"); !strings.Contains(out, "SERVING") {
			t.Errorf("health answered %s", out)
		}
	})
}

// TestRESTSurface calls every route with a plain HTTP client and checks that
// the OpenAPI file describes each.
func TestRESTSurface(t *testing.T) {
	both(t, nil, nil, func(t *testing.T, d deployment) {
		id := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann", "project": "acme"})["id"].(string)
		gone := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "bob", "project": "acme"})["id"].(string)
		routes := []struct {
			method, route, path string
			body                any
			status              int
		}{
			{"POST", "/v1/sessions", "/v1/sessions", map[string]any{"user": "eve", "project": "acme"}, 200},
			{"GET", "/v1/sessions/{id}", "/v1/sessions/" + id, nil, 200},
			{"POST", "/v1/sessions:batchGet", "/v1/sessions:batchGet", map[string]any{"ids": []string{id}}, 200},
			{"PATCH", "/v1/sessions/{id}", "/v1/sessions/" + id, map[string]any{"session": map[string]any{"labels": map[string]any{"a": "b"}}, "updateMask": "labels"}, 200},
			{"GET", "/v1/sessions", "/v1/sessions?user=ann&project=acme&phase=ACTIVE&pageSize=5", nil, 200},
			{"GET", "/v1/users:active", "/v1/users:active?project=acme", nil, 200},
			{"GET", "/v1/sessions/{id}/ttl", "/v1/sessions/" + id + "/ttl", nil, 200},
			{"POST", "/v1/sessions/{id}/ttl:extend", "/v1/sessions/" + id + "/ttl:extend", map[string]any{"activityKind": "input"}, 200},
			{"GET", "/v1/sessions/{id}/ttl:explain", "/v1/sessions/" + id + "/ttl:explain", nil, 200},
			{"POST", "/v1/sessions/{id}/events", "/v1/sessions/" + id + "/events", map[string]any{"events": []any{map[string]any{"type": "input:text", "data": map[string]any{"n": 1}}}}, 200},
			{"GET", "/v1/sessions/{id}/events", "/v1/sessions/" + id + "/events?after=0&limit=5", nil, 200},
			{"PUT", "/v1/policies/{project}", "/v1/policies/acme", map[string]any{"baseTtl": "3600s"}, 200},
			{"GET", "/v1/policies/{project}", "/v1/policies/acme", nil, 200},
			{"GET", "/v1/policies", "/v1/policies", nil, 200},
			{"DELETE", "/v1/policies/{project}", "/v1/policies/acme", nil, 200},
			{"GET", "/v1/sessions/{id}/activity", "/v1/sessions/" + id + "/activity", nil, 200},
			{"GET", "/v1/activity/inactive", "/v1/activity/inactive?threshold=3600s", nil, 200},
			{"GET", "/v1/admin/breakers", "/v1/admin/breakers", nil, 200},
			{"POST", "/v1/admin/breakers/{name}:set", "/v1/admin/breakers/none:set", map[string]any{"state": "OPEN"}, 404},
			{"GET", "/v1/admin/status", "/v1/admin/status", nil, 200},
			{"GET", "/v1/admin/deadLetters", "/v1/admin/deadLetters", nil, 200},
			{"POST", "/v1/admin/deadLetters/{id}:retry", "/v1/admin/deadLetters/none:retry", map[string]any{}, 404},
			{"POST", "/v1/sessions/{id}:end", "/v1/sessions/" + gone + ":end", map[string]any{"reason": "done"}, 200},
			{"DELETE", "/v1/sessions/{id}", "/v1/sessions/" + gone, nil, 200},
			{"POST", "/v1/users/{user}:revokeSessions", "/v1/users/eve:revokeSessions", map[string]any{"project": "acme"}, 200},
		}
		called := map[string]bool{"GET /v1/sessions/{id}/events:watch": true} // TestServerSentEvents
		for _, r := range routes {
			called[r.method+" "+r.route] = true
			status, answer, err := d.call(r.method, r.path, r.body)
			if err != nil || status != r.status {
				t.Errorf("%s %s answered %d %v %v, want %d", r.method, r.path, status, answer, err, r.status)
			}
		}
		spec := d.must(t, http.MethodGet, "/openapi.json", nil)
		described := map[string]bool{}
		for path, item := range spec["paths"].(map[string]any) {
			for method := range item.(map[string]any) {
				described[strings.ToUpper(method)+" "+path] = true
			}
		}
		var all []string
		for r := range called {
			all = append(all, r)
		}
		for r := range described {
			if !called[r] {
				all = append(all, r)
			}
		}
		sort.Strings(all)
		for _, r := range all {
			if !described[r] || !called[r] {
				t.Errorf("%s: described in the OpenAPI file %v, called %v", r, described[r], called[r])
			}
		}
		for _, path := range []string{"/", "/healthz", "/readyz", "/metrics"} {
			resp, err := http.Get(d.http + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("GET %s answered %d", path, resp.StatusCode)
			}
		}
	})
}

// TestServerSentEvents reads a stream, resumes it after a break, and sees it
// end with the session.
func TestServerSentEvents(t *testing.T) {
	both(t, nil, nil, func(t *testing.T, d deployment) {
		id := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann"})["id"].(string)
		appendOne := func(typ string) {
			d.must(t, http.MethodPost, "/v1/sessions/"+id+"/events", map[string]any{"events": []any{map[string]any{"type": typ}}})
		}
		appendOne("step:one")
		first := d.stream(t, id, "0")
		seen := []string{first.next(t).typ, first.next(t).typ}
		appendOne("step:two")
		last := first.next(t)
		seen = append(seen, last.typ)
		first.close()
		appendOne("step:three")
		second := d.stream(t, id, last.id)
		seen = append(seen, second.next(t).typ)
		d.must(t, http.MethodPost, "/v1/sessions/"+id+":end", map[string]any{})
		end := second.next(t)
		seen = append(seen, end.typ)
		if want := "session:created step:one step:two step:three session:ended"; strings.Join(seen, " ") != want {
			t.Errorf("saw %v, want %s", seen, want)
		}
		if e := second.next(t); e.typ != "" {
			t.Errorf("the stream went on with %v after the session ended", e)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, d.http+"/v1/sessions/"+id+"/events:watch", nil)
		req.Header.Set("Last-Event-ID", end.id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Errorf("resuming after the end answered %d, want 204", resp.StatusCode)
		}
	})
}

type sseEvent struct{ id, typ string }

type sseStream struct {
	resp *http.Response
	sc   *bufio.Scanner
}

// stream opens a session's event stream after a cursor.
func (d deployment) stream(t *testing.T, id, after string) *sseStream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.http+"/v1/sessions/"+id+"/events:watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", after)
	resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // the stream's close does it
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("the stream answered %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	s := &sseStream{resp: resp, sc: bufio.NewScanner(resp.Body)}
	t.Cleanup(s.close)
	return s
}

func (s *sseStream) close() { _ = s.resp.Body.Close() }

// next returns the next event, the zero event at the end of the stream.
func (s *sseStream) next(t *testing.T) sseEvent {
	t.Helper()
	timeout := time.AfterFunc(10*time.Second, s.close)
	defer timeout.Stop()
	var e sseEvent
	for s.sc.Scan() {
		field, value, _ := strings.Cut(s.sc.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			e.id = value
		case "event":
			e.typ = value
		case "data":
			var body map[string]any
			if err := json.Unmarshal([]byte(value), &body); err != nil || body["cursor"] != e.id {
				t.Errorf("data %q does not fit id %q: %v", value, e.id, err)
			}
		case "":
			if e.typ != "" && s.sc.Text() == "" {
				return e
			}
		}
	}
	return sseEvent{}
}

// TestBadInput: each mistake is answered by its code and the field to blame,
// and nothing is stored.
func TestBadInput(t *testing.T) {
	both(t, nil, nil, func(t *testing.T, d deployment) {
		id := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann"})["id"].(string)
		events := func(n int, e map[string]any) any {
			list := make([]any, n)
			for i := range list {
				list[i] = e
			}
			return map[string]any{"events": list}
		}
		policy := func(p map[string]any) any { return map[string]any{"user": "bad", "ttlPolicy": p} }
		unknown := "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		for _, c := range []struct {
			name, method, path string
			body               any
			status             int
			field              string
		}{
			{"unknown session", "GET", "/v1/sessions/" + unknown, nil, 404, ""},
			{"malformed id", "GET", "/v1/sessions/nonsense", nil, 400, "id"},
			{"wrong page token", "GET", "/v1/sessions?pageToken=zzz", nil, 400, "pageToken"},
			{"wrong cursor", "GET", "/v1/sessions/" + id + "/events?wait=1s&after=x-y", nil, 400, "after"},
			{"wait too long", "GET", "/v1/sessions/" + id + "/events?wait=31s", nil, 400, "wait"},
			{"base_ttl 0", "POST", "/v1/sessions", policy(map[string]any{"baseTtl": "0s"}), 400, "ttlPolicy.baseTtl"},
			{"negative duration", "POST", "/v1/sessions", policy(map[string]any{"extension": "-5s"}), 400, "ttlPolicy.extension"},
			{"absurd duration", "POST", "/v1/sessions", policy(map[string]any{"baseTtl": "31536000000s"}), 400, "ttlPolicy.baseTtl"},
			{"extension over max_lifetime", "POST", "/v1/sessions", policy(map[string]any{"baseTtl": "60s", "extension": "7200s", "maxLifetime": "3600s"}), 400, "ttlPolicy.extension"},
			{"unknown field in a mask", "PATCH", "/v1/sessions/" + id, map[string]any{"session": map[string]any{"labels": map[string]any{"a": "b"}}, "updateMask": "user"}, 400, "updateMask"},
			{"stale etag", "PATCH", "/v1/sessions/" + id, map[string]any{"session": map[string]any{"labels": map[string]any{"a": "b"}}, "etag": "99"}, 409, ""},
			{"empty event type", "POST", "/v1/sessions/" + id + "/events", events(1, map[string]any{"type": ""}), 400, "events[0].type"},
			{"reserved event type", "POST", "/v1/sessions/" + id + "/events", events(1, map[string]any{"type": "session:extended"}), 400, "events[0].type"},
			{"501 events", "POST", "/v1/sessions/" + id + "/events", events(501, map[string]any{"type": "input:text"}), 400, "events"},
			{"an event of 1 MiB", "POST", "/v1/sessions/" + id + "/events", events(1, map[string]any{"type": "input:text", "data": strings.Repeat("x", 1<<20)}), 400, "events[0].data"},
			{"session data of 300 KiB", "POST", "/v1/sessions", map[string]any{"user": "bad", "data": strings.Repeat("x", 300<<10)}, 400, "data"},
			{"unknown JSON field", "POST", "/v1/sessions", map[string]any{"user": "bad", "usr": "x"}, 400, ""},
			{"unknown route", "GET", "/v1/nonsense", nil, 404, ""},
		} {
			status, answer, err := d.call(c.method, c.path, c.body)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			if status != c.status {
				t.Errorf("%s: answered %d %v, want %d", c.name, status, answer, c.status)
			}
			if c.field != "" && !blames(answer, c.field) {
				t.Errorf("%s: %v does not blame %s", c.name, answer, c.field)
			}
			if answer["message"] == "" || answer["code"] == nil {
				t.Errorf("%s: %v is no google.rpc.Status", c.name, answer)
			}
		}
		for _, c := range []struct{ name, contentType, body string }{{"invalid JSON", "application/json", `{"user": `}, {"wrong media type", "text/plain", `{"user":"bad"}`}} {
			resp, err := http.Post(d.http+"/v1/sessions", c.contentType, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			var answer map[string]any
			err = json.NewDecoder(resp.Body).Decode(&answer)
			resp.Body.Close()
			want := map[string]int{"invalid JSON": 400, "wrong media type": 415}[c.name]
			if err != nil || resp.StatusCode != want || answer["message"] == "" {
				t.Errorf("%s: answered %d %v %v, want %d", c.name, resp.StatusCode, answer, err, want)
			}
		}
		if counts := d.eventTypes(t, id); len(counts) != 1 || counts["session:created"] != 1 {
			t.Errorf("refused events were stored: %v", counts)
		}
		page := d.must(t, http.MethodGet, "/v1/sessions?user="+url.QueryEscape("bad"), nil)
		if list := page["sessions"].([]any); len(list) != 0 {
			t.Errorf("refused sessions were stored: %v", list)
		}
	})
}

// blames says whether a Status names a field in a FieldViolation.
func blames(answer map[string]any, field string) bool {
	details, _ := answer["details"].([]any)
	for _, detail := range details {
		violations, _ := detail.(map[string]any)["fieldViolations"].([]any)
		for _, v := range violations {
			if v.(map[string]any)["field"] == field {
				return true
			}
		}
	}
	return false
}

// TestPollLimit: who does not wait is asked to, and told for how long.
func TestPollLimit(t *testing.T) {
	d := embedded(t)
	id := d.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": "ann"})["id"].(string)
	path := d.http + "/v1/sessions/" + id + "/events"
	first, err := http.Get(path)
	if err != nil {
		t.Fatal(err)
	}
	first.Body.Close()
	second, err := http.Get(path)
	if err != nil {
		t.Fatal(err)
	}
	second.Body.Close()
	if first.StatusCode != 200 || second.StatusCode != 429 || second.Header.Get("Retry-After") == "" {
		t.Errorf("answered %d, then %d with Retry-After %q", first.StatusCode, second.StatusCode, second.Header.Get("Retry-After"))
	}
}
