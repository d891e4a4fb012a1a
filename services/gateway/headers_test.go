package gateway_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway"
)

func TestMetadataCannotBeInjected(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for _, line := range []string{"GET /v1/sessions/s1", "GET /v1/sessions/s1/events:watch"} {
		do(t, g, line, "", "Authorization", "Bearer mine", "Grpc-Metadata-Authorization", "Bearer stolen", "Grpc-Metadata-X-Forwarded-For", "6.6.6.6",
			"Grpc-Metadata-Data-Bin", "AAAA", "Cookie", "secret=1", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil", "Stoker-User", "root",
			"X-User", "root", "Grpcgateway-Authorization", "Bearer stolen", "Accept-Language", "la")
		calls := b.Calls()
		if len(calls) != 1 {
			t.Fatalf("%s: got %d calls, want 1", line, len(calls))
		}
		md := calls[0].MD
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer mine" {
			t.Errorf("%s: authorization: got %q, want the caller's, once", line, got)
		}
		for key, values := range md {
			switch key {
			case ":authority", "content-type", "user-agent", "grpc-accept-encoding", "traceparent", "authorization", "grpc-timeout":
				continue
			}
			for _, v := range values {
				for _, bad := range []string{"stolen", "6.6.6.6", "secret", "evil", "root", "la"} {
					if strings.Contains(v, bad) {
						t.Errorf("%s: metadata %s: %q came from the caller", line, key, v)
					}
				}
			}
		}
	}
}

func TestTwoAuthorizationsAreRefused(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for _, line := range []string{"GET /v1/sessions/s1", "GET /v1/sessions/s1/events:watch", "GET /v1/sessions/s1/events"} {
		w := do(t, g, line, "", "Authorization", "Bearer a", "Authorization", "Bearer b")
		if failed(t, w); w.Code != http.StatusBadRequest {
			t.Errorf("%s: got %d, want 400", line, w.Code)
		}
	}
	// What cannot be metadata is no credential either, and no reason to fail.
	if w := do(t, g, "GET /v1/sessions/s1/events:watch", "", "Authorization", "Bearer \xff"); w.Code >= http.StatusInternalServerError {
		t.Errorf("an Authorization beyond ASCII: got %d", w.Code)
	}
	for _, c := range b.Calls() {
		if len(c.MD.Get("authorization")) > 0 {
			t.Errorf("got metadata %v", c.MD)
		}
	}
}

func TestHeadersOfAnswers(t *testing.T) {
	b := &backend{Answer: func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		_ = grpc.SetHeader(ctx, metadata.Pairs("stoker-served-by", "fallback", "stoker-stale-for", "5s", "stoker-durability", "journal", "internal-node", "10.0.0.1", "set-cookie", "a=b"))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("internal-trailer", "10.0.0.1"))
		return nil, nil
	}}
	g := start(t, b, nil)
	w := do(t, g, "GET /v1/sessions/s1", "", "TE", "trailers")
	for name, want := range map[string]string{"Stoker-Served-By": "fallback", "Stoker-Stale-For": "5s", "Stoker-Durability": "journal"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	resp := w.Result()
	defer resp.Body.Close()
	for _, h := range []http.Header{resp.Header, resp.Trailer} {
		for name, values := range h {
			if strings.Contains(strings.Join(values, ""), "10.0.0.1") || name == "Set-Cookie" || strings.HasPrefix(name, "Grpc-") {
				t.Errorf("the store's own metadata is answered: %s: %q", name, values)
			}
		}
	}
}

// TestMarksOfDegradedAnswers reach HTTP under their own names, once, with
// messages and with refusals.
func TestMarksOfDegradedAnswers(t *testing.T) {
	var refusal error
	b := &backend{Answer: func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		_ = grpc.SetHeader(ctx, metadata.Pairs("stoker-served-by", "fallback", "stoker-stale-for", "1.5s", "internal-node", "10.0.0.1"))
		return nil, refusal
	}}
	g := start(t, b, nil)
	for name, c := range map[string]struct {
		line    string
		refusal error
		code    int
	}{
		"read":                 {"GET /v1/sessions/s1", nil, http.StatusOK},
		"batch":                {"POST /v1/sessions:batchGet", nil, http.StatusOK},
		"poll":                 {"GET /v1/sessions/s1/events", nil, http.StatusOK},
		"long poll":            {"GET /v1/sessions/s2/events?after=0&wait=20s", nil, http.StatusOK},
		"refused":              {"GET /v1/sessions/s1", rpc.Error(codes.NotFound, rpc.ReasonSessionNotFound, "none", nil, 0), http.StatusNotFound},
		"refused poll":         {"GET /v1/sessions/s3/events", rpc.Error(codes.NotFound, rpc.ReasonSessionNotFound, "none", nil, 0), http.StatusNotFound},
		"refused without what": {"GET /v1/sessions/s1/ttl", status.Error(codes.Internal, "x"), http.StatusInternalServerError},
	} {
		refusal = c.refusal
		w := do(t, g, c.line, "")
		got := fmt.Sprintln(w.Code, w.Header().Values("Stoker-Served-By"), w.Header().Values("Stoker-Stale-For"), w.Header().Values("Stoker-Durability"))
		if want := fmt.Sprintln(c.code, "[fallback] [1.5s] []"); got != want {
			t.Errorf("%s: answered %s, want %s", name, got, want)
		}
		for h := range w.Header() {
			if strings.HasPrefix(h, "Grpc-") || h == "Internal-Node" {
				t.Errorf("%s: header %s is answered", name, h)
			}
		}
	}
}

func TestCORS(t *testing.T) {
	preflight := []string{"Origin", "https://app.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type"}
	closed := start(t, &backend{}, nil)
	for _, line := range []string{"OPTIONS /v1/sessions", "GET /v1/sessions"} {
		if w := do(t, closed, line, "", preflight...); w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: CORS is off by default: %v", line, w.Header())
		}
	}
	open := start(t, &backend{}, func(c *gateway.Config) { c.CORSOrigins = []string{"https://app.example"} })
	if w := do(t, open, "OPTIONS /v1/sessions", "", preflight...); w.Code != http.StatusNoContent || w.Header().Get("Access-Control-Allow-Origin") != "https://app.example" {
		t.Errorf("preflight: got %d %v", w.Code, w.Header())
	}
	w := do(t, open, "GET /v1/sessions/s1", "", "Origin", "https://app.example")
	if w.Header().Get("Access-Control-Allow-Origin") != "https://app.example" || !strings.Contains(w.Header().Get("Access-Control-Expose-Headers"), "Etag") &&
		!strings.Contains(w.Header().Get("Access-Control-Expose-Headers"), "ETag") || w.Header().Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("answer: got %v", w.Header())
	}
	for _, name := range []string{"Retry-After", "Stoker-Served-By", "Stoker-Stale-For", "Stoker-Durability"} {
		if !strings.Contains(w.Header().Get("Access-Control-Expose-Headers"), name) {
			t.Errorf("%s is not exposed: %s", name, w.Header().Get("Access-Control-Expose-Headers"))
		}
	}
	if w := do(t, open, "GET /v1/sessions/s1", "", "Origin", "https://evil.example"); w.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another origin: got %v", w.Header())
	}
}

// timed records the deadlines that are set for writing.
type timed struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (w *timed) SetWriteDeadline(t time.Time) error {
	w.until = t
	return nil
}

// A connection keeps the write deadline of the request before: every answer,
// whoever gives it, must set its own.
func TestEveryAnswerHasItsOwnWriteDeadline(t *testing.T) {
	g := start(t, &backend{}, func(c *gateway.Config) { c.CORSOrigins = []string{"https://app.example"} })
	for name, r := range map[string]*http.Request{
		"call":          request(t, "GET /v1/sessions/s1", ""),
		"page":          request(t, "GET /", ""),
		"no route":      request(t, "GET /nothing", ""),
		"watch":         request(t, "GET /v1/sessions/s1/events:watch", ""),
		"refused watch": request(t, "GET /v1/sessions/s1/events:watch", "", "Accept", "text/html"),
		"refused":       request(t, "GET /v1/sessions", "", "Authorization", "a", "Authorization", "b"),
		"preflight":     request(t, "OPTIONS /v1/sessions", "", "Origin", "https://app.example", "Access-Control-Request-Method", "POST"),
	} {
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		g.Handler().ServeHTTP(w, r)
		if time.Until(w.until) < 5*time.Second {
			t.Errorf("%s: no new deadline for writing", name)
		}
	}
}

func TestETag(t *testing.T) {
	b := &backend{Answer: func(_ context.Context, method string, _ proto.Message) (proto.Message, error) {
		if strings.HasSuffix(method, "GetTTL") {
			return &sessionv1.TTL{}, nil
		}
		return &sessionv1.Session{Id: "s1", Revision: 7}, nil
	}}
	g := start(t, b, nil)
	for _, line := range []string{"GET /v1/sessions/s1", "POST /v1/sessions", "PATCH /v1/sessions/s1", "POST /v1/sessions/s1:end"} {
		if w := do(t, g, line, "{}"); w.Header().Get("ETag") != `"7"` {
			t.Errorf("%s: got ETag %q, want \"7\"", line, w.Header().Get("ETag"))
		}
	}
	for have, want := range map[string]int{`"7"`: 304, `W/"7"`: 304, `"5", "7"`: 304, `*`: 304, `"8"`: 200, `7`: 200, `"77"`: 200, ``: 200} {
		w := do(t, g, "GET /v1/sessions/s1", "", "If-None-Match", have)
		if w.Code != want || (w.Code == http.StatusNotModified) != (w.Body.Len() == 0) || w.Header().Get("ETag") != `"7"` {
			t.Errorf("If-None-Match %s: got %d with %d bytes, want %d", have, w.Code, w.Body.Len(), want)
		}
	}
	for _, line := range []string{"GET /v1/sessions/s1/ttl", "POST /v1/sessions/s1:end", "GET /openapi.json"} {
		if w := do(t, g, line, "", "If-None-Match", "*"); w.Code != http.StatusOK || w.Body.Len() == 0 {
			t.Errorf("%s with If-None-Match: got %d, want 200", line, w.Code)
		}
	}
}

func TestIfMatchMakesAnUpdateConditional(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for _, tt := range []struct{ ifMatch, body, etag string }{
		{`"7"`, `{"session":{"labels":{"etag":"x"}}}`, `"7"`},
		{`"7"`, `{}`, `"7"`},
		{`"7"`, ``, `"7"`},
		{`W/"7"`, `{"etag":""}`, `W/"7"`},
		{`"7"`, `{"etag":null}`, `"7"`},
		{`"7"`, ` {"etag":"6"} `, `6`},
		{`*`, `{}`, ``},
		{``, `{}`, ``},
	} {
		if w := do(t, g, "PATCH /v1/sessions/s1", tt.body, "If-Match", tt.ifMatch); w.Code != http.StatusOK {
			t.Errorf("If-Match %s, body %s: got %d %s", tt.ifMatch, tt.body, w.Code, w.Body)
			continue
		}
		req, ok := b.Calls()[0].Req.(*sessionv1.UpdateSessionRequest)
		if !ok || req.GetEtag() != tt.etag {
			t.Errorf("If-Match %s, body %s: got etag %q, want %q", tt.ifMatch, tt.body, req.GetEtag(), tt.etag)
		}
	}
	if w := do(t, g, "PATCH /v1/sessions/s1", `null`, "If-Match", `"7"`); w.Code != http.StatusBadRequest {
		t.Errorf("null: got %d, want 400", w.Code)
	}
}

func TestLogHasNoSecrets(t *testing.T) {
	var log bytes.Buffer
	g := startWithLog(t, &backend{}, nil, slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	do(t, g, "GET /v1/sessions/secret-id?access_token=secret", "", "Authorization", "Bearer secret", "Cookie", "secret")
	do(t, g, "POST /v1/users/secret-user:revokeSessions", `{"reason":"secret"}`)
	do(t, g, "GET /secret/path", "")
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log tells secrets:\n%s", &log)
	}
	if n := strings.Count(log.String(), "msg=request"); n != 3 || !strings.Contains(log.String(), "/v1/sessions/{id}") {
		t.Errorf("want a line for each request with its route, got:\n%s", &log)
	}
}
