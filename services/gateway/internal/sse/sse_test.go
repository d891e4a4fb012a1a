package sse_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
	"github.com/livinguniverse/stoker/services/gateway/internal/sse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// step is what the store does next: after a silence it sends a message or ends
// the stream.
type step struct {
	after time.Duration
	resp  *sessionv1.WatchEventsResponse
	err   error
}

// store plays steps; after the last it is silent.
type store struct {
	sessionv1.StorageServiceClient
	steps []step
	asked *sessionv1.WatchEventsRequest
}

func (s *store) WatchEvents(ctx context.Context, req *sessionv1.WatchEventsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[sessionv1.WatchEventsResponse], error) {
	s.asked = req
	return &stream{ctx: ctx, steps: s.steps}, nil
}

type stream struct {
	grpc.ClientStream
	ctx   context.Context
	steps []step
}

func (s *stream) Recv() (*sessionv1.WatchEventsResponse, error) {
	if len(s.steps) == 0 {
		<-s.ctx.Done()
		return nil, status.FromContextError(s.ctx.Err()).Err()
	}
	next := s.steps[0]
	s.steps = s.steps[1:]
	select {
	case <-time.After(next.after):
		return next.resp, next.err
	case <-s.ctx.Done():
		return nil, status.FromContextError(s.ctx.Err()).Err()
	}
}

func event(cursor string) step {
	return step{resp: &sessionv1.WatchEventsResponse{Cursor: cursor, Event: &sessionv1.Event{
		Id: "e" + cursor, Type: "input:text", Cursor: cursor, Data: structpb.NewStringValue("two\nlines"),
	}}}
}

// run serves one request for so long, on a clock of its own.
func run(t *testing.T, steps []step, d time.Duration, headers ...string) (*httptest.ResponseRecorder, *store) {
	t.Helper()
	w, s := httptest.NewRecorder(), &store{steps: steps}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/sessions/s1/events:watch?after=1-0", http.NoBody)
		for i := 0; i+1 < len(headers); i += 2 {
			r.Header.Add(headers[i], headers[i+1])
		}
		h := &sse.Handler{Watch: sse.Receive(s), Marshal: protojson.MarshalOptions{}, Heartbeat: 15 * time.Second}
		h.Serve(ctx, w, r, "s1")
	})
	return w, s
}

func TestForm(t *testing.T) {
	truncated := event("2-0")
	truncated.resp.Truncated = true
	w, _ := run(t, []step{truncated, event("3-0"), {err: io.EOF}}, time.Minute)
	parts := strings.Split(w.Body.String(), "\n\n")
	if len(parts) != 5 || parts[0] != "retry: 2000" || parts[1] != "event: truncated\ndata: {}" || parts[4] != "" {
		t.Fatalf("got %q", parts)
	}
	for i, cursor := range []string{"2-0", "3-0"} {
		lines := strings.Split(parts[i+2], "\n")
		if len(lines) != 3 || lines[0] != "id: "+cursor || lines[1] != "event: input:text" || !strings.HasPrefix(lines[2], "data: {") {
			t.Fatalf("got %q", lines)
		}
		var e sessionv1.Event
		if err := protojson.Unmarshal([]byte(strings.TrimPrefix(lines[2], "data: ")), &e); err != nil || e.GetData().GetStringValue() != "two\nlines" {
			t.Errorf("got %v, %v", &e, err)
		}
	}
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/event-stream" || w.Header().Get("Cache-Control") != "no-store" || !w.Flushed {
		t.Errorf("got %d %v, flushed %v", w.Code, w.Header(), w.Flushed)
	}
}

// TestTruncatedWithoutAnEvent: that events are gone is told also where none has come
// after them, with the place to resume from.
func TestTruncatedWithoutAnEvent(t *testing.T) {
	steps := []step{{resp: &sessionv1.WatchEventsResponse{Cursor: "2-0", Truncated: true}}, {err: io.EOF}}
	w, _ := run(t, steps, time.Minute)
	if got, want := w.Body.String(), "retry: 2000\n\nid: 2-0\nevent: truncated\ndata: {}\n\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHeartbeats(t *testing.T) {
	// Silence: one to open the stream, then one every 15 s.
	w, _ := run(t, nil, 50*time.Second)
	if n := strings.Count(w.Body.String(), ": heartbeat\n\n"); n != 4 {
		t.Errorf("in 50 s of silence: got %d heartbeats, want 4:\n%s", n, w.Body)
	}
	// An event or a heartbeat of the store makes the next one due later.
	w, _ = run(t, []step{event("2-0"), {after: 14 * time.Second, resp: event("3-0").resp}, {after: 14 * time.Second, resp: &sessionv1.WatchEventsResponse{}}}, 40*time.Second)
	if n := strings.Count(w.Body.String(), ": heartbeat\n\n"); n != 1 {
		t.Errorf("got %d heartbeats, want the store's one:\n%s", n, w.Body)
	}
}

func TestWhereItGoesOn(t *testing.T) {
	for last, want := range map[string]string{"": "1-0", "5-1": "5-1"} {
		if _, s := run(t, []step{{err: io.EOF}}, time.Minute, "Last-Event-ID", last); s.asked.GetAfter() != want || s.asked.GetId() != "s1" {
			t.Errorf("Last-Event-ID %q: asked for %v, want after %q", last, s.asked, want)
		}
	}
}

func TestBeforeTheFirstPart(t *testing.T) {
	for name, tt := range map[string]struct {
		step step
		code int
	}{
		"over":      {step{err: io.EOF}, 204},
		"not found": {step{err: rpc.Error(codes.NotFound, rpc.ReasonSessionNotFound, "none", nil, 0)}, 404},
		"away":      {step{err: status.Error(codes.Unavailable, "10.0.0.1")}, 503},
		"invalid":   {step{err: rpc.FieldViolation("after", "x", "a cursor")}, 400},
	} {
		w, _ := run(t, []step{tt.step}, time.Minute)
		if w.Code != tt.code || tt.code == 204 != (w.Body.Len() == 0) || strings.Contains(w.Body.String(), "10.0.0.1") {
			t.Errorf("%s: got %d %s, want %d", name, w.Code, w.Body, tt.code)
		}
	}
}

func TestErrorInTheMiddle(t *testing.T) {
	w, _ := run(t, []step{event("2-0"), {after: time.Second, err: status.Error(codes.Unavailable, "10.0.0.1")}}, time.Minute)
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "event: error\ndata: {") || strings.Contains(w.Body.String(), "10.0.0.1") ||
		!strings.HasSuffix(w.Body.String(), "\n\n") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestAccept(t *testing.T) {
	for accept, want := range map[string]int{
		"": 204, "text/event-stream": 204, "*/*": 204, "text/*": 204, "text/html, text/event-stream;q=0.9": 204, "TEXT/Event-Stream": 204,
		"text/html": 406, "application/json": 406,
	} {
		if w, _ := run(t, []step{{err: io.EOF}}, time.Minute, "Accept", accept); w.Code != want {
			t.Errorf("Accept %q: got %d, want %d", accept, w.Code, want)
		}
	}
}

func TestStopping(t *testing.T) {
	for name, opened := range map[string]bool{"before the first part": false, "in the middle": true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancelCause(t.Context())
			s := &store{}
			if opened {
				s.steps = []step{event("2-0")}
			}
			h := &sse.Handler{Watch: sse.Receive(s), Heartbeat: 15 * time.Second}
			time.AfterFunc(100*time.Millisecond, func() { stop(httperr.ErrStopping) })
			w := httptest.NewRecorder()
			begin := time.Now()
			h.Serve(ctx, w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody), "s1")
			if d := time.Since(begin); d != 100*time.Millisecond {
				t.Errorf("%s: ended after %v", name, d)
			}
			if want := map[bool]int{true: 200, false: 503}[opened]; w.Code != want || strings.Contains(w.Body.String(), "event: error") {
				t.Errorf("%s: got %d %s, want %d", name, w.Code, w.Body, want)
			}
			if !opened && w.Header().Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", name)
			}
		})
	}
}

// stuck is a client that takes some bytes and then none, until its deadline.
type stuck struct {
	*httptest.ResponseRecorder
	mu    sync.Mutex
	until time.Time
	left  int
}

func (w *stuck) SetWriteDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = t
	return nil
}

func (w *stuck) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left >= 0 {
		return len(p), nil
	}
	w.mu.Lock()
	until := w.until
	w.mu.Unlock()
	time.Sleep(time.Until(until))
	return 0, os.ErrDeadlineExceeded
}

func (w *stuck) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

func TestClientThatTakesNothingIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := make([]step, 1000)
		for i := range steps {
			steps[i] = event("2-0")
		}
		h := &sse.Handler{Watch: sse.Receive(&store{steps: steps}), Heartbeat: 15 * time.Second}
		begin := time.Now()
		h.Serve(t.Context(), &stuck{ResponseRecorder: httptest.NewRecorder(), left: 500}, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody), "s1")
		if d := time.Since(begin); d > 11*time.Second {
			t.Errorf("dropped after %v, want 10 s", d)
		}
	})
}

// gone is a client whose connection is reset.
type gone struct{ *httptest.ResponseRecorder }

func (gone) Write([]byte) (int, error)       { return 0, errors.New("reset") }
func (gone) WriteString(string) (int, error) { return 0, errors.New("reset") }

func TestClientThatIsGoneEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &sse.Handler{Watch: sse.Receive(&store{}), Heartbeat: 15 * time.Second}
		h.Serve(t.Context(), gone{httptest.NewRecorder()}, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody), "s1")
	})
}
