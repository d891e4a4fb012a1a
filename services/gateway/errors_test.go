package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/gateway"
)

func TestErrorsOfTheStore(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for name, tt := range map[string]struct {
		err    error
		http   int
		reason string
		retry  string
	}{
		"not found":      {rpc.Error(codes.NotFound, rpc.ReasonSessionNotFound, "no such session", nil, 0), 404, rpc.ReasonSessionNotFound, ""},
		"conflict":       {rpc.Error(codes.Aborted, rpc.ReasonConflict, "changed", nil, 0), 409, rpc.ReasonConflict, ""},
		"over":           {rpc.Error(codes.FailedPrecondition, rpc.ReasonSessionOver, "ended", nil, 0), 409, rpc.ReasonSessionOver, ""},
		"precondition":   {rpc.Error(codes.FailedPrecondition, "OTHER", "no", nil, 0), 400, "OTHER", ""},
		"store away":     {rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "away", nil, 1500*time.Millisecond), 503, rpc.ReasonStoreUnavailable, "2"},
		"limit":          {rpc.Error(codes.ResourceExhausted, rpc.ReasonLimitReached, "full", nil, time.Millisecond), 429, rpc.ReasonLimitReached, "1"},
		"invalid":        {rpc.FieldViolation("user", "x", "y"), 400, rpc.ReasonInvalid, ""},
		"internal":       {rpc.Error(codes.Internal, rpc.ReasonInternal, "internal error", nil, 0), 500, rpc.ReasonInternal, ""},
		"plain internal": {status.Error(codes.Internal, "secret /etc/passwd"), 500, rpc.ReasonInternal, ""},
		"plain unknown":  {errors.New("secret dial 10.1.2.3"), 500, rpc.ReasonInternal, ""},
		"plain away":     {status.Error(codes.Unavailable, "secret dial tcp 10.1.2.3:9090: refused"), 503, rpc.ReasonStoreUnavailable, "1"},
		"message size":   {status.Error(codes.ResourceExhausted, "grpc: received message larger than max"), 413, "MESSAGE_TOO_LARGE", ""},
		"denied":         {status.Error(codes.PermissionDenied, "no"), 403, "", ""},
		"anonymous":      {status.Error(codes.Unauthenticated, "who"), 401, "", ""},
		"unimplemented":  {status.Error(codes.Unimplemented, "later"), 501, "", ""},
		"deadline":       {status.Error(codes.DeadlineExceeded, "late"), 504, "", ""},
	} {
		b.Answer = func(context.Context, string, proto.Message) (proto.Message, error) { return nil, tt.err }
		// A poll that waits is not limited, and fails as any other call.
		if w := do(t, g, "GET /v1/sessions/s1/events?after=0&wait=5s", ""); w.Code != tt.http || w.Header().Get("Retry-After") != tt.retry {
			t.Errorf("%s: a poll got %d, Retry-After %q; want %d, %q", name, w.Code, w.Header().Get("Retry-After"), tt.http, tt.retry)
		}
		w := do(t, g, "GET /v1/sessions/s1", "")
		f := failed(t, w)
		if w.Code != tt.http || f.reason() != tt.reason || w.Header().Get("Retry-After") != tt.retry || f.Code != status.Code(tt.err) && f.Code != codes.Internal {
			t.Errorf("%s: got %d, reason %q, Retry-After %q, code %v; want %d, %q, %q, %v", name,
				w.Code, f.reason(), w.Header().Get("Retry-After"), f.Code, tt.http, tt.reason, tt.retry, status.Code(tt.err))
		}
		if strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "10.1.2.3") {
			t.Errorf("%s: the answer tells internals: %s", name, w.Body)
		}
	}
}

func TestUnreachableStoreTellsNoAddress(t *testing.T) {
	g := startAt(t, nil, observed(slog.DiscardHandler), "127.0.0.1:1")
	for _, line := range []string{"GET /v1/sessions/s1", "GET /v1/sessions/s1/events", "GET /v1/sessions/s1/events:watch"} {
		w := do(t, g, line, "")
		if f := failed(t, w); w.Code != http.StatusServiceUnavailable || f.reason() != rpc.ReasonStoreUnavailable ||
			w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "127.0.0.1") {
			t.Errorf("%s: got %d %s", line, w.Code, w.Body)
		}
	}
	if w := do(t, g, "GET /readyz", ""); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "127.0.0.1") {
		t.Errorf("readyz: got %d %s, want 503 without an address", w.Code, w.Body)
	}
}

func TestRoutingErrors(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for line, want := range map[string]struct {
		code  int
		allow string
	}{
		"GET /v1/nothing":                   {404, ""},
		"GET /v1/sessions/s1/":              {404, ""},
		"GET /v1/sessions/a%2Fb/events":     {404, ""},
		"GET /v2/sessions":                  {404, ""},
		"PUT /v1/sessions":                  {405, "GET, POST"},
		"PUT /v1/sessions/s1":               {405, "DELETE, GET, PATCH"},
		"DELETE /v1/sessions/s1/events":     {405, "GET, POST"},
		"POST /v1/sessions/s1/events:watch": {405, "GET"},
		"POST /openapi.json":                {405, "GET"},
		"HEAD /v1/sessions/s1/events":       {405, "GET, POST"},
		"BREW /v1/policies/acme":            {405, "DELETE, GET, PUT"},
	} {
		w := do(t, g, line, "")
		if f := failed(t, w); w.Code != want.code || w.Header().Get("Allow") != want.allow || f.reason() == "" {
			t.Errorf("%s: got %d, Allow %q, %s; want %d, %q", line, w.Code, w.Header().Get("Allow"), w.Body, want.code, want.allow)
		}
	}
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("the store was asked: %v", calls)
	}
}

func TestMethodOverrideIsIgnored(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for _, kind := range []string{"application/x-www-form-urlencoded", "application/json", ""} {
		r := request(t, "POST /v1/sessions/s1", "", "X-HTTP-Method-Override", "DELETE", "Content-Type", kind)
		w := httptest.NewRecorder()
		g.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%q: got %d, want 405", kind, w.Code)
		}
	}
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("the store was asked: %v", calls)
	}
}

func TestBadBodiesReachNobody(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for body, field := range map[string]string{
		`{`:                                   "body",
		`x`:                                   "body",
		`   `:                                 "body",
		`[]`:                                  "body",
		`"x"`:                                 "body",
		`{"user":"ann"}{"user":"eve"}`:        "body",
		`{"user":"ann"} trailing`:             "body",
		`{"user":"ann","user":"eve"}`:         "user",
		`{"usr":"ann"}`:                       "usr",
		`{"ttlPolicy":{"nonsense":1}}`:        "nonsense",
		`{"user":5}`:                          "user",
		`{"ttlPolicy":{"baseTtl":"5"}}`:       "",
		`{"ttlPolicy":{"baseTtl":5}}`:         "",
		`{"ttlPolicy":{"maxExtensions":"x"}}`: "maxExtensions",
		`{"ttlPolicy":{"strategy":"NEVER"}}`:  "strategy",
		"{\"user\":\"\xff\"}":                 "body",
	} {
		w := do(t, g, "POST /v1/sessions", body)
		f := failed(t, w)
		if w.Code != http.StatusBadRequest || f.Code != codes.InvalidArgument || f.field() == "" || field != "" && f.field() != field {
			t.Errorf("%s: got %d, field %q: %s; want 400, %q", body, w.Code, f.field(), f.Message, field)
		}
		if strings.ContainsAny(f.Message, "\u00a0") || strings.Contains(f.Message, "proto:") || strings.Contains(f.Message, "strconv") {
			t.Errorf("%s: the message is the decoder's own: %q", body, f.Message)
		}
	}
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("the store was asked: %v", calls)
	}
}

func TestBadParametersAreNamed(t *testing.T) {
	b := &backend{}
	g := start(t, b, nil)
	for line, field := range map[string]string{
		"GET /v1/sessions?pageSize=x":                "pageSize",
		"GET /v1/sessions?page_size=1&page_size=2":   "pageSize",
		"GET /v1/sessions?phase=BUSY":                "phase",
		"GET /v1/sessions?pageSize=99999999999":      "pageSize",
		"GET /v1/sessions/p1/events?wait=soon":       "wait",
		"GET /v1/sessions/p2/events?wait=1s&wait=2s": "wait",
		"GET /v1/activity/inactive?threshold=x":      "threshold",
		"GET /v1/sessions?user.x=1":                  "user",
		"GET /v1/sessions?user=%ff":                  "user",
		"GET /v1/sessions?user=ann&%ff=x":            "a parameter's name",
		"GET /v1/sessions/%ff":                       "path",
	} {
		w := do(t, g, line, "")
		f := failed(t, w)
		if w.Code != http.StatusBadRequest || f.field() != field || strings.Contains(f.Message, "strconv") || strings.Contains(f.Message, "JSON") {
			t.Errorf("%s: got %d, field %q: %s; want 400, %q", line, w.Code, f.field(), f.Message, field)
		}
	}
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("the store was asked: %v", calls)
	}
}

// unsized is a body whose length is not told beforehand.
type unsized struct{ io.Reader }

func TestBodyLimits(t *testing.T) {
	b := &backend{}
	g := start(t, b, func(c *gateway.Config) { c.MaxBody = 1024 })
	object := func(size int) string { return `{"user":"` + strings.Repeat("a", size-len(`{"user":""}`)) + `"}` }
	post := func(body io.Reader, kind string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/sessions", body)
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		g.Handler().ServeHTTP(w, r)
		return w
	}
	for name, body := range map[string]io.Reader{
		"sized":                      strings.NewReader(object(1025)),
		"unsized":                    unsized{strings.NewReader(object(1025))},
		"valid first, long after it": unsized{strings.NewReader(`{"user":"ann"}` + strings.Repeat(" ", 2000))},
	} {
		w := post(body, "application/json")
		if f := failed(t, w); w.Code != http.StatusRequestEntityTooLarge || f.reason() != "BODY_TOO_LARGE" {
			t.Errorf("%s: got %d %s, want 413", name, w.Code, w.Body)
		}
	}
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "json", ";"} {
		w := post(strings.NewReader(`{}`), kind)
		if f := failed(t, w); w.Code != http.StatusUnsupportedMediaType || f.reason() != "UNSUPPORTED_MEDIA_TYPE" {
			t.Errorf("%s: got %d, want 415", kind, w.Code)
		}
	}
	if w := post(io.MultiReader(strings.NewReader(`{"user":`), broken{}), "application/json"); w.Code != http.StatusBadRequest {
		t.Errorf("a body that breaks off: got %d, want 400", w.Code)
	}
	if calls := b.Calls(); len(calls) > 0 {
		t.Errorf("the store was asked: %v", calls)
	}
	for _, kind := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json", ""} {
		if w := post(strings.NewReader(object(1024)), kind); w.Code != http.StatusOK {
			t.Errorf("%q: got %d, want 200", kind, w.Code)
		}
	}
	if w := post(unsized{bytes.NewReader(nil)}, ""); w.Code != http.StatusOK {
		t.Errorf("an empty body of no stated length: got %d, want 200", w.Code)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestBodyOfAReadIsNotWaitedFor(t *testing.T) {
	g := start(t, &backend{}, nil)
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		in, out := io.Pipe() // never written to
		r := httptest.NewRequestWithContext(t.Context(), method, "/v1/sessions/s1", in)
		w := httptest.NewRecorder()
		g.Handler().ServeHTTP(w, r)
		_ = out.Close()
		if w.Code != http.StatusOK {
			t.Errorf("%s: got %d, want 200", method, w.Code)
		}
	}
}

func TestPanicIsAnError(t *testing.T) {
	var log bytes.Buffer
	g := startWithLog(t, &backend{}, nil, slog.NewTextHandler(&log, nil))
	w := httptest.NewRecorder()
	r := request(t, "POST /v1/sessions", "{}")
	r.Body = panicking{}
	g.Handler().ServeHTTP(w, r)
	if f := failed(t, w); w.Code != http.StatusInternalServerError || f.reason() != rpc.ReasonInternal || strings.Contains(w.Body.String(), "boom") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "boom") {
		t.Errorf("the panic is not in the log: %s", &log)
	}
}

type panicking struct{ io.ReadCloser }

func (panicking) Read([]byte) (int, error) { panic("boom") }

func TestDeadlineOfACall(t *testing.T) {
	b := &backend{Answer: func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		until, ok := ctx.Deadline()
		if left := time.Until(until); !ok || left < 30*time.Second || left > 36*time.Second {
			return nil, status.Errorf(codes.Internal, "deadline in %v", left)
		}
		return nil, nil
	}}
	g := start(t, b, nil)
	for _, timeout := range []string{"", "1n", "99H", "nonsense"} {
		if w := do(t, g, "GET /v1/sessions/s1", "", "Grpc-Timeout", timeout); w.Code != http.StatusOK {
			t.Errorf("Grpc-Timeout %q: got %d, want it ignored", timeout, w.Code)
		}
	}
}
