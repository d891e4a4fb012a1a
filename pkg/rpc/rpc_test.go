package rpc_test

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

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/sessionclient"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a StorageService whose calls do what a test says.
type fake struct {
	sessionv1.UnimplementedStorageServiceServer
	get  func(ctx context.Context) error
	feed func(stream sessionv1.StorageService_FeedServer) error
}

func (f *fake) GetSession(ctx context.Context, _ *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
	return &sessionv1.Session{}, f.get(ctx)
}

func (f *fake) CreateSession(context.Context, *sessionv1.CreateSessionRequest) (*sessionv1.Session, error) {
	return &sessionv1.Session{}, nil
}

func (f *fake) Feed(stream sessionv1.StorageService_FeedServer) error { return f.feed(stream) }

// doorman lets in who knows the word.
type doorman struct{}

func (doorman) Authenticate(ctx context.Context) (auth.Principal, error) {
	word := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(word) == 0 {
		return auth.Principal{}, rpc.Error(codes.Unauthenticated, "NO_TOKEN", "no token", nil, 0)
	}
	return auth.Principal{User: word[0]}, nil
}

var errDomain = errors.New("domain error with a secret")

// served is how a fake is reached, and what its server logs.
type served struct {
	conn grpc.ClientConnInterface
	log  *bytes.Buffer
}

func configure(authn auth.Authenticator) (rpc.ServerConfig, *bytes.Buffer) {
	var log bytes.Buffer
	tel := telemetry.Nop()
	tel.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: func(err error) error {
		if errors.Is(err, errDomain) {
			return rpc.Error(codes.Aborted, rpc.ReasonConflict, "changed", nil, 0)
		}
		return nil
	}, BeforeAnswer: func(ctx context.Context, err error) {
		_ = grpc.SetHeader(ctx, metadata.Pairs("answered", status.Code(err).String()))
	}}, &log
}

// serve starts a server with a fake behind it.
func serve(t *testing.T, f *fake, authn auth.Authenticator) served {
	t.Helper()
	cfg, log := configure(authn)
	srv, _, err := rpc.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sessionv1.RegisterStorageServiceServer(srv, f)
	pipe := rpc.NewPipe()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(ctx, srv, pipe.Listener(), time.Second) }()
	conn, err := rpc.Dial(rpc.PipeTarget, telemetry.Nop(), pipe.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return served{conn, log}
}

// serveLocal is the same without a transport.
func serveLocal(t *testing.T, f *fake, authn auth.Authenticator) served {
	t.Helper()
	cfg, log := configure(authn)
	l, err := rpc.NewLocal(cfg, health.NewServer())
	if err != nil {
		t.Fatal(err)
	}
	sessionv1.RegisterStorageServiceServer(l, f)
	t.Cleanup(func() {
		if err := l.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	return served{l, log}
}

// ways are over a transport and without one.
var ways = map[string]func(*testing.T, *fake, auth.Authenticator) served{"transport": serve, "local": serveLocal}

func anybody(t *testing.T) auth.Authenticator {
	t.Helper()
	c := auth.Config{Mode: auth.ModeNone}
	a, err := c.Authenticator()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestErrorsAreMappedAndHideTheirCause(t *testing.T) {
	for way, serve := range ways {
		t.Run(way, func(t *testing.T) {
			for name, c := range map[string]struct {
				do   func(context.Context) error
				code codes.Code
				is   error
				logs string
			}{
				"mapped":   {func(context.Context) error { return errDomain }, codes.Aborted, sessionclient.ErrConflict, "a secret"},
				"unmapped": {func(context.Context) error { return errors.New("a secret") }, codes.Internal, nil, "a secret"},
				"status":   {func(context.Context) error { return status.Error(codes.NotFound, "none") }, codes.NotFound, sessionclient.ErrNotFound, "NotFound"},
				"panic":    {func(context.Context) error { panic("a secret") }, codes.Internal, nil, "a secret"},
				"cancel":   {func(context.Context) error { return context.Canceled }, codes.Canceled, context.Canceled, "Canceled"},
				"deadline": {func(context.Context) error { return context.DeadlineExceeded }, codes.DeadlineExceeded, context.DeadlineExceeded, "DeadlineExceeded"},
			} {
				t.Run(name, func(t *testing.T) {
					s := serve(t, &fake{get: c.do}, anybody(t))
					var h metadata.MD
					_, err := sessionv1.NewStorageServiceClient(s.conn).GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: "x"}, grpc.Header(&h))
					if got := h.Get("answered"); len(got) != 1 || got[0] != c.code.String() {
						t.Errorf("before the answer was told of %v, want %v once", got, c.code)
					}
					if status.Code(err) != c.code || strings.Contains(err.Error(), "secret") {
						t.Errorf("answered %v, want %v", err, c.code)
					}
					if c.is != nil && !errors.Is(sessionclient.FromStatus(err), c.is) {
						t.Errorf("%v is not %v", sessionclient.FromStatus(err), c.is)
					}
					if !strings.Contains(s.log.String(), c.logs) {
						t.Errorf("logged %q, want %s in it", s.log.String(), c.logs)
					}
				})
			}
		})
	}
}

func TestAuthenticationComesBeforeValidation(t *testing.T) {
	for way, serve := range ways {
		t.Run(way, func(t *testing.T) {
			srv := serve(t, &fake{get: func(ctx context.Context) error {
				if auth.FromContext(ctx).User != "ann" {
					return errors.New("no principal")
				}
				return nil
			}}, doorman{})
			client := sessionv1.NewStorageServiceClient(srv.conn)
			if _, err := client.GetSession(t.Context(), &sessionv1.GetSessionRequest{}); status.Code(err) != codes.Unauthenticated {
				t.Errorf("an unknown caller learns %v", err)
			}
			ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "ann")
			if _, err := client.GetSession(ctx, &sessionv1.GetSessionRequest{}); status.Code(err) != codes.InvalidArgument {
				t.Errorf("a known caller gets %v", err)
			}
			if _, err := client.GetSession(ctx, &sessionv1.GetSessionRequest{Id: "x"}); err != nil {
				t.Error(err)
			}
			// Probes need no token.
			if r, err := healthv1.NewHealthClient(srv.conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
				t.Errorf("health: %v %v", r, err)
			}
		})
	}
}

func TestViolationsNameFieldValueAndExpectation(t *testing.T) {
	for way, serve := range ways {
		t.Run(way, func(t *testing.T) {
			srv := serve(t, &fake{}, anybody(t))
			_, err := sessionv1.NewStorageServiceClient(srv.conn).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{
				Project:   strings.Repeat("é/", 100),
				TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(-time.Second), ActivityRules: []*sessionv1.ActivityRule{{Pattern: "ok:*"}, {Pattern: ""}}},
			})
			got := blamed(err)
			for field, want := range map[string]string{
				"ttlPolicy.baseTtl":                  `got "-1s", want greater than or equal to`,
				"ttlPolicy.activityRules[1].pattern": "want",
				"project":                            `got "é/é/`,
			} {
				if !strings.Contains(got[field], want) || len(got[field]) > 250 {
					t.Errorf("%s: %q, want %s in it", field, got[field], want)
				}
			}
			_, err = sessionv1.NewStorageServiceClient(srv.conn).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
			if got := blamed(err)["id"]; got != "want a value" {
				t.Errorf("a field that is required: %q", got)
			}
		})
	}
}

// blamed are the descriptions of the fields that an error blames, by field.
func blamed(err error) map[string]string {
	out := map[string]string{}
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.GetFieldViolations() {
				out[v.GetField()] = v.GetDescription()
			}
		}
	}
	return out
}

func TestEachMessageOfAStreamIsValidated(t *testing.T) {
	for way, serve := range ways {
		t.Run(way, func(t *testing.T) {
			srv := serve(t, &fake{feed: func(s sessionv1.StorageService_FeedServer) error {
				for {
					if _, err := s.Recv(); errors.Is(err, io.EOF) {
						return nil
					} else if err != nil {
						return err
					}
				}
			}}, anybody(t))
			s, err := sessionv1.NewStorageServiceClient(srv.conn).Feed(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, credits := range []int32{1, -1} {
				if err := s.Send(&sessionv1.FeedRequest{Credits: credits}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("the second message was answered by %v", err)
			}
		})
	}
}

func TestStopCutsOffWhoDoesNotEnd(t *testing.T) {
	begun := make(chan struct{})
	srv := serve(t, &fake{feed: func(s sessionv1.StorageService_FeedServer) error {
		close(begun)
		<-s.Context().Done()
		return s.Context().Err()
	}}, anybody(t))
	s, err := sessionv1.NewStorageServiceClient(srv.conn).Feed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&sessionv1.FeedRequest{}); err != nil {
		t.Fatal(err)
	}
	<-begun
	// The cleanup ends the server with this stream open: it must not hang.
}

func TestAdminHandler(t *testing.T) {
	var ready error
	tel := telemetry.Nop()
	tel.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a_metric 1") })
	h := rpc.NewAdminHandler(tel, func(context.Context) error { return ready })
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, http.NoBody))
		return rec.Code, rec.Body.String()
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if code, _ := get(path); code != http.StatusOK {
			t.Errorf("%s answered %d", path, code)
		}
	}
	ready = errors.New("a secret")
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || strings.Contains(body, "secret") {
		t.Errorf("not ready: %d %s", code, body)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	cmd := rpc.HealthCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{srv.URL + "/healthz"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Error(err)
	}
	cmd.SetArgs([]string{srv.URL + "/readyz"})
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("a service that is not ready is healthy")
	}
	http.DefaultClient.CloseIdleConnections()
}

func FuzzShorten(f *testing.F) {
	f.Add("é")
	f.Add(strings.Repeat("€", 40))
	f.Add("\xff\xfe")
	f.Fuzz(func(t *testing.T, s string) {
		got := rpc.Shorten(s)
		if len(got) > 64*3+3 || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q is shortened to %q", s, got)
		}
	})
}

func TestJSONName(t *testing.T) {
	for in, want := range map[string]string{"base_ttl": "baseTtl", "id": "id", "max_2_things": "max2Things", "a__b": "aB"} {
		if got := rpc.JSONName(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
