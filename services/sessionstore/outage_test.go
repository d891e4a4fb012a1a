package sessionstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"regexp"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// serve serves a service on a pipe until the test ends.
func serve(t *testing.T, s *Service, tel *telemetry.Telemetry) sessionv1.StorageServiceClient {
	t.Helper()
	authn, err := (&auth.Config{Mode: auth.ModeNone}).Authenticator()
	if err != nil {
		t.Fatal(err)
	}
	srv, _, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: ErrorMapper, Plain: Plain, BeforeAnswer: s.BeforeAnswer})
	if err != nil {
		t.Fatal(err)
	}
	s.Register(srv)
	pipe := rpc.NewPipe()
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Serve(pipe.Listener()) })
	conn, err := rpc.Dial(rpc.PipeTarget, telemetry.Nop(), pipe.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Drain()
		rpc.Stop(srv, time.Second)
		running.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return sessionv1.NewStorageServiceClient(conn)
}

// TestReadsOutliveRedis: what was seen is answered, marked and counted, while
// Redis is away; with fail_fast nothing is.
func TestReadsOutliveRedis(t *testing.T) {
	for mode, want := range map[string]struct {
		code   codes.Code
		marked string
		counts string
	}{
		FallbackStale:    {codes.OK, "[fallback]", `stoker_fallback_answers_total\{.*operation="get".*\} 1`},
		FallbackFailFast: {codes.Unavailable, "[]", `stoker_store_calls\{.*\} 0`},
	} {
		t.Run(mode, func(t *testing.T) {
			redis := redistest.Start(t)
			tel, err := telemetry.Setup(t.Context(), telemetry.Config{LogLevel: "error", LogFormat: "text", ServiceName: "test"}, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
			s, err := New(t.Context(), *configured(t, "--redis-url", redis.URL(), "--redis-timeout", "1s", "--read-fallback", mode), tel)
			if err != nil {
				t.Fatal(err)
			}
			client := serve(t, s, tel)
			sess, err := client.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann"})
			if err != nil {
				t.Fatal(err)
			}
			if err := redis.Kill(); err != nil {
				t.Fatal(err)
			}
			var h metadata.MD
			_, err = client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: sess.GetId()}, grpc.Header(&h))
			if status.Code(err) != want.code || fmt.Sprint(h.Get("stoker-served-by")) != want.marked {
				t.Errorf("a session that was seen: %v, marked %v", err, h.Get("stoker-served-by"))
			}
			if _, err := client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: sessionid.New(1)}); status.Code(err) != codes.Unavailable {
				t.Errorf("one that was not: %v", err)
			}
			if err := s.Ready(t.Context()); err == nil {
				t.Error("ready, though nothing can be written")
			}
			w := httptest.NewRecorder()
			tel.Metrics.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
			has := func(line string) bool { return regexp.MustCompile("(?m)^" + line + "$").MatchString(w.Body.String()) }
			for _, line := range []string{want.counts, `stoker_store_call_limit\{.*class="read".*\} \d+`} {
				if !has(line) {
					t.Errorf("no %s in the metrics", line)
				}
			}
			for _, line := range []string{`stoker_fallback_misses_total\{.*operation="get".*\} 1`, `stoker_near_cache_sessions(\{.*\})? 1`, `stoker_near_cache_bytes(\{.*\})? \d+`} {
				if got := has(line); got != (mode == FallbackStale) {
					t.Errorf("%s in the metrics: %v", line, got)
				}
			}
		})
	}
}

// broken is a store that cannot answer.
type broken struct {
	storage.Store
	err    error
	sweeps chan struct{}
}

func (b *broken) Status(context.Context) storage.Status { return storage.Status{Err: b.err} }
func (b *broken) Sweep(context.Context) (storage.SweepResult, error) {
	select {
	case b.sweeps <- struct{}{}:
	default:
	}
	return storage.SweepResult{}, b.err
}

// TestReadiness: without its backend the service is ready only while something
// stands in for it, and never with a backend that is wrong.
func TestReadiness(t *testing.T) {
	away := fmt.Errorf("%w: refused", storage.ErrUnavailable)
	for name, c := range map[string]struct {
		err      error
		standsIn func() bool
		ready    bool
	}{
		"answers":             {nil, nil, true},
		"away":                {away, nil, false},
		"away, journal":       {away, func() bool { return true }, true},
		"away, journal fails": {away, func() bool { return false }, false},
		"a part is away":      {fmt.Errorf("%w: %w", storage.ErrPartly, away), nil, true},
		"wrong, journal":      {errors.New("other shards"), func() bool { return true }, false},
	} {
		t.Run(name, func(t *testing.T) {
			store := &broken{err: c.err, sweeps: make(chan struct{})}
			tel := telemetry.Nop()
			tel.Log = slog.New(slog.DiscardHandler)
			s := &Service{cfg: Config{Sweep: time.Millisecond}, tel: tel, store: &backend{Store: store, standsIn: c.standsIn}}
			if err := s.Ready(t.Context()); (err == nil) != c.ready {
				t.Errorf("ready: %v, want %v", err, c.ready)
			}
			hs := health.NewServer()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.sweep(ctx, hs) }()
			for range 3 { // the health of a sweep is set before the one after the next
				<-store.sweeps
			}
			r, err := hs.Check(t.Context(), &healthv1.HealthCheckRequest{})
			if err != nil || (r.GetStatus() == healthv1.HealthCheckResponse_SERVING) != c.ready {
				t.Errorf("health: %v %v, want serving %v", r, err, c.ready)
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}
