package gateway_test

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// routeTests is the REST surface: each route with the call that it must become.
var routeTests = []struct {
	line, body, rpc string
	want            proto.Message // unset fields of want must be unset
	text            string        // want in prototext
}{
	{"POST /v1/sessions", `{"user":"ann","project":"acme","labels":{"a":"b"},"data":{"n":[1,null]},"ttlPolicy":{"baseTtl":"5s","maxExtensions":0},"requestId":"r1"}`, "CreateSession", &sessionv1.CreateSessionRequest{}, `user:"ann" project:"acme" labels:{key:"a" value:"b"} data:{struct_value:{fields:{key:"n" value:{list_value:{values:{number_value:1} values:{null_value:NULL_VALUE}}}}}} ttl_policy:{base_ttl:{seconds:5} max_extensions:0} request_id:"r1"`},
	{"POST /v1/sessions", ``, "CreateSession", &sessionv1.CreateSessionRequest{}, ``},
	{"GET /v1/sessions/s1", ``, "GetSession", &sessionv1.GetSessionRequest{}, `id:"s1"`},
	{"GET /v1/sessions/a%20b:c", ``, "GetSession", &sessionv1.GetSessionRequest{}, `id:"a b:c"`},
	{"POST /v1/sessions:batchGet", `{"ids":["a","b"]}`, "BatchGetSessions", &sessionv1.BatchGetSessionsRequest{}, `ids:"a" ids:"b"`},
	{"PATCH /v1/sessions/s1", `{"session":{"labels":{"a":"b"}},"updateMask":"labels,data","etag":"3"}`, "UpdateSession", &sessionv1.UpdateSessionRequest{}, `id:"s1" session:{labels:{key:"a" value:"b"}} update_mask:{paths:"labels" paths:"data"} etag:"3"`},
	{"POST /v1/sessions/s1:end", `{"reason":"done"}`, "EndSession", &sessionv1.EndSessionRequest{}, `id:"s1" reason:"done"`},
	{"POST /v1/sessions/s1:end", ``, "EndSession", &sessionv1.EndSessionRequest{}, `id:"s1"`},
	// The path decides which session is meant, whatever the body says.
	{"POST /v1/sessions/s1:end", `{"id":"other"}`, "EndSession", &sessionv1.EndSessionRequest{}, `id:"s1"`},
	{"DELETE /v1/sessions/s1", ``, "DeleteSession", &sessionv1.DeleteSessionRequest{}, `id:"s1"`},
	{"GET /v1/sessions?user=ann&project=acme&phase=IDLE&pageSize=7&pageToken=t", ``, "ListSessions", &sessionv1.ListSessionsRequest{}, `user:"ann" project:"acme" phase:IDLE page_size:7 page_token:"t"`},
	{"GET /v1/users:active?project=acme&pageSize=7&pageToken=t", ``, "ListActiveUsers", &sessionv1.ListActiveUsersRequest{}, `project:"acme" page_size:7 page_token:"t"`},
	{"POST /v1/users/ann:revokeSessions", `{"project":"acme","except":["a","b"],"reason":"out"}`, "RevokeUserSessions", &sessionv1.RevokeUserSessionsRequest{}, `user:"ann" project:"acme" except:"a" except:"b" reason:"out"`},
	{"GET /v1/sessions/s1/ttl", ``, "GetTTL", &sessionv1.GetTTLRequest{}, `id:"s1"`},
	{"GET /v1/sessions/s1/ttl:explain", ``, "ExplainTTL", &sessionv1.ExplainTTLRequest{}, `id:"s1"`},
	{"POST /v1/sessions/s1/ttl:extend", `{"activityTime":"1970-01-01T00:00:01.5Z","activityKind":"input","eventId":"e1"}`, "ExtendTTL", &sessionv1.ExtendTTLRequest{}, `id:"s1" activity_time:{seconds:1 nanos:500000000} activity_kind:"input" event_id:"e1"`},
	{"POST /v1/sessions/s1/events", `{"events":[{"id":"e1","type":"input:text","source":"p","subject":"f","time":"1970-01-01T00:00:02Z","data":"x","traceparent":"t"}]}`, "AppendEvents", &sessionv1.AppendEventsRequest{}, `id:"s1" events:{id:"e1" type:"input:text" source:"p" subject:"f" time:{seconds:2} data:{string_value:"x"} traceparent:"t"}`},
	{"GET /v1/sessions/s1/events", ``, "ListEvents", &sessionv1.ListEventsRequest{}, `id:"s1"`},
	{"GET /v1/sessions/s2/events?after=&limit=3&wait=1.5s", ``, "ListEvents", &sessionv1.ListEventsRequest{}, `id:"s2" after:"" limit:3 wait:{seconds:1 nanos:500000000}`},
	{"GET /v1/sessions/s3/events?after=5-1", ``, "ListEvents", &sessionv1.ListEventsRequest{}, `id:"s3" after:"5-1"`},
	{"GET /v1/sessions/s1/events:watch?after=5-1", ``, "WatchEvents", &sessionv1.WatchEventsRequest{}, `id:"s1" after:"5-1"`},
	{"GET /v1/policies/acme", ``, "GetPolicy", &sessionv1.GetPolicyRequest{}, `project:"acme"`},
	{"PUT /v1/policies/acme", `{"extension":"60s","strategy":"EVERY_ACTIVITY","activityRules":[{"pattern":"step:*","kind":"step_progress"}]}`, "SetPolicy", &sessionv1.SetPolicyRequest{}, `project:"acme" policy:{extension:{seconds:60} strategy:EVERY_ACTIVITY activity_rules:{pattern:"step:*" kind:"step_progress"}}`},
	{"DELETE /v1/policies/acme", ``, "DeletePolicy", &sessionv1.DeletePolicyRequest{}, `project:"acme"`},
	{"GET /v1/policies?pageSize=2&pageToken=t", ``, "ListPolicies", &sessionv1.ListPoliciesRequest{}, `page_size:2 page_token:"t"`},
	{"GET /v1/admin/breakers", ``, "ListBreakers", &sessionv1.ListBreakersRequest{}, ``},
	{"POST /v1/admin/breakers/read:set", `{"state":"OPEN"}`, "SetBreaker", &sessionv1.SetBreakerRequest{}, `name:"read" state:OPEN`},
	{"GET /v1/admin/status", ``, "GetStoreStatus", &sessionv1.GetStoreStatusRequest{}, ``},
	{"GET /v1/admin/deadLetters?pageSize=2&pageToken=t", ``, "ListDeadLetters", &sessionv1.ListDeadLettersRequest{}, `page_size:2 page_token:"t"`},
	{"POST /v1/admin/deadLetters/d1:retry", `{"drop":true}`, "RetryDeadLetter", &sessionv1.RetryDeadLetterRequest{}, `id:"d1" drop:true`},
	{"GET /v1/sessions/s1/activity", ``, "GetActivity", &activityv1.GetActivityRequest{}, `id:"s1"`},
	{"GET /v1/activity/inactive?threshold=60s&project=acme&pageSize=2&pageToken=t", ``, "ListInactiveSessions", &activityv1.ListInactiveSessionsRequest{}, `threshold:{seconds:60} project:"acme" page_size:2 page_token:"t"`},
}

func TestEveryRouteReachesItsRPC(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for _, tt := range routeTests {
		if err := prototext.Unmarshal([]byte(tt.text), tt.want); err != nil {
			t.Fatal(err)
		}
		w := do(t, g, tt.line, tt.body)
		if w.Code != http.StatusOK && w.Code != http.StatusNoContent {
			t.Errorf("%s: got %d %s", tt.line, w.Code, w.Body)
		}
		calls := b.Calls()
		if len(calls) != 1 || calls[0].Method != tt.rpc {
			t.Errorf("%s: got calls %v, want one of %s", tt.line, calls, tt.rpc)
			continue
		}
		if !proto.Equal(calls[0].Req, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.line, calls[0].Req, tt.want)
		}
	}
}

var braces = regexp.MustCompile(`\{[^}]*\}`)

// declared returns every RPC with its method and path, as the protos have it.
func declared() map[string]string {
	out := map[string]string{}
	for _, f := range []protoreflect.FileDescriptor{
		sessionv1.File_stoker_session_v1_storage_service_proto, sessionv1.File_stoker_session_v1_admin_service_proto,
		activityv1.File_stoker_activity_v1_activity_service_proto,
	} {
		for i := range f.Services().Len() {
			ms := f.Services().Get(i).Methods()
			for j := range ms.Len() {
				rule, _ := proto.GetExtension(ms.Get(j).Options(), annotations.E_Http).(*annotations.HttpRule)
				for method, path := range map[string]string{"get": rule.GetGet(), "post": rule.GetPost(), "put": rule.GetPut(), "patch": rule.GetPatch(), "delete": rule.GetDelete()} {
					if path != "" {
						out[string(ms.Get(j).Name())] = method + " " + braces.ReplaceAllString(path, "{}")
					}
				}
			}
		}
	}
	return out
}

func TestRouteTableIsComplete(t *testing.T) {
	tested := map[string]bool{}
	for _, tt := range routeTests {
		tested[tt.rpc] = true
	}
	byREST := declared()
	for rpc := range byREST {
		if !tested[rpc] {
			t.Errorf("%s has a route and no test", rpc)
		}
	}
	if len(byREST) < 25 {
		t.Errorf("got %d routes from the protos, want all", len(byREST))
	}
}

func TestOpenAPIHasEveryRoute(t *testing.T) {
	g := start(t, &backend{}, nil)
	w := do(t, g, "GET /openapi.json", "")
	var doc struct {
		Info  struct{ Title, Version string }
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Info.Title != "Stoker" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got title %q, Content-Type %q", doc.Info.Title, w.Header().Get("Content-Type"))
	}
	described := map[string]bool{}
	for path, methods := range doc.Paths {
		for m := range methods {
			described[m+" "+braces.ReplaceAllString(path, "{}")] = true
		}
	}
	want := declared()
	for rpc, route := range want {
		if !described[route] {
			t.Errorf("%s: %s is missing", rpc, route)
		}
		delete(described, route)
	}
	for route := range described {
		t.Errorf("%s is described and not declared", route)
	}
}

func TestOwnPages(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for path, kind := range map[string]string{"/": "text/html", "/style.css": "text/css", "/healthz": "text/plain", "/readyz": "text/plain", "/metrics": "text/plain", "/openapi.json": "application/json"} {
		w := do(t, g, "GET "+path, "")
		if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) {
			t.Errorf("%s: got %d %q", path, w.Code, w.Header().Get("Content-Type"))
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(w.Header().Get("Content-Security-Policy"), "frame-ancestors 'none'") {
			t.Errorf("%s: security headers are missing: %v", path, w.Header())
		}
	}
	if page := do(t, g, "GET /", "").Body.String(); strings.Contains(page, "<script") || strings.Contains(page, "style=") {
		t.Error("the page has what its own policy forbids")
	}
	b.health.Shutdown()
	if w := do(t, g, "GET /readyz", ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("readyz while the store does not serve: got %d, want 503", w.Code)
	}
	if w := do(t, g, "GET /healthz", ""); w.Code != http.StatusOK {
		t.Errorf("healthz is about this process alone: got %d, want 200", w.Code)
	}
}

func TestShapeOfJSON(t *testing.T) {
	g := start(t, &backend{}, nil)
	for line, want := range map[string]string{
		"GET /v1/sessions/s1":        `{"id":"","user":"","project":"","labels":{},"phase":"PHASE_UNSPECIFIED","revision":"0","extensionCount":0,"endReason":""}`,
		"GET /v1/sessions/s1/events": `{"events":[],"nextCursor":"","truncated":false}`,
		"GET /v1/sessions":           `{"sessions":[],"nextPageToken":""}`,
		"DELETE /v1/sessions/s1":     `{}`,
	} {
		w := do(t, g, line, "")
		if !sameJSON(t, w.Body.Bytes(), []byte(want)) || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: got %s, want %s", line, w.Body, want)
		}
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	m, _ := json.Marshal(x)
	n, _ := json.Marshal(y)
	return string(m) == string(n)
}

func TestDataGoesRoundUnchanged(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for _, data := range []string{`null`, `true`, `0`, `""`, `[]`, `{}`, `{"a":[1,"é",{"b":null}]}`, `"\u2028<&>"`} {
		if w := do(t, g, "POST /v1/sessions", `{"data":`+data+`}`); w.Code != http.StatusOK {
			t.Errorf("%s: got %d %s", data, w.Code, w.Body)
			continue
		}
		req, ok := b.Calls()[0].Req.(*sessionv1.CreateSessionRequest)
		if !ok || req.GetData() == nil {
			t.Errorf("%s: data is absent", data)
			continue
		}
		if back, err := protojson.Marshal(req.GetData()); err != nil || !sameJSON(t, back, []byte(data)) {
			t.Errorf("%s: came as %s, %v", data, back, err)
		}
	}
}
