package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway"
)

func TestMain(m *testing.M) {
	if os.Getenv(pollersEnv) != "" {
		bePollers()
		return
	}
	goleak.VerifyTestMain(m)
}

// call is what reached the services behind the gateway.
type call struct {
	Method string
	Req    proto.Message
	MD     metadata.MD
}

// backend stands for the session store and the activity service: it records
// each call and answers what a test wants, an empty message otherwise.
type backend struct {
	sessionv1.UnimplementedStorageServiceServer
	sessionv1.UnimplementedAdminServiceServer
	activityv1.UnimplementedActivityServiceServer

	Answer func(ctx context.Context, method string, req proto.Message) (proto.Message, error)
	Watch  func(req *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error

	health *health.Server

	mu    sync.Mutex
	calls []call
}

func (b *backend) record(ctx context.Context, method string, req proto.Message) {
	md, _ := metadata.FromIncomingContext(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, call{method[strings.LastIndex(method, "/")+1:], req, md})
}

// Calls returns what was called, and forgets it.
func (b *backend) Calls() []call {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := b.calls
	b.calls = nil
	return calls
}

func (b *backend) unary(ctx context.Context, req any, i *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if strings.HasPrefix(i.FullMethod, "/grpc.health") {
		return next(ctx, req)
	}
	in, ok := req.(proto.Message)
	if !ok {
		return nil, status.Errorf(codes.Internal, "%T is no message", req)
	}
	b.record(ctx, i.FullMethod, in)
	if b.Answer != nil {
		if out, err := b.Answer(ctx, i.FullMethod, in); out != nil || err != nil {
			return out, err
		}
	}
	return empty(i.FullMethod)
}

// empty returns a new message of the type that a method answers.
func empty(fullMethod string) (proto.Message, error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(fullMethod, "/"), "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, err
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", name)
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, err
	}
	return t.New().Interface(), nil
}

func (b *backend) WatchEvents(req *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error {
	b.record(stream.Context(), "/WatchEvents", req)
	if b.Watch == nil {
		return nil
	}
	return b.Watch(req, stream)
}

// start serves a backend and returns a gateway in front of it.
func start(t *testing.T, b *backend, change func(*gateway.Config)) *gateway.Gateway {
	t.Helper()
	return startWithLog(t, b, change, slog.DiscardHandler)
}

func startWithLog(t *testing.T, b *backend, change func(*gateway.Config), log slog.Handler) *gateway.Gateway {
	t.Helper()
	tel := observed(log)
	return startAt(t, change, tel, rpc.PipeTarget, b.serve(t))
}

func startTraced(t *testing.T, b *backend, change func(*telemetry.Telemetry)) *gateway.Gateway {
	t.Helper()
	tel := observed(slog.DiscardHandler)
	change(tel)
	return startAt(t, nil, tel, rpc.PipeTarget, b.serve(t))
}

func observed(log slog.Handler) *telemetry.Telemetry {
	tel := telemetry.Nop()
	tel.Log = slog.New(log)
	tel.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metric 1\n") })
	return tel
}

// serve serves the backend until the test ends.
func (b *backend) serve(t *testing.T) grpc.DialOption {
	t.Helper()
	pipe := rpc.NewPipe()
	srv := grpc.NewServer(grpc.UnaryInterceptor(b.unary))
	sessionv1.RegisterStorageServiceServer(srv, b)
	sessionv1.RegisterAdminServiceServer(srv, b)
	activityv1.RegisterActivityServiceServer(srv, b)
	b.health = health.NewServer()
	healthv1.RegisterHealthServer(srv, b.health)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(pipe.Listener())
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-served
	})
	return pipe.DialOption()
}

func startAt(t *testing.T, change func(*gateway.Config), tel *telemetry.Telemetry, target string, opts ...grpc.DialOption) *gateway.Gateway {
	t.Helper()
	conn, err := rpc.Dial(target, tel, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	cfg := gateway.Config{
		HTTPAddr: "127.0.0.1:0", Grace: 5 * time.Second, PollInterval: 5 * time.Second, MaxWaiters: 100, MaxBody: 64 << 10,
		Auth: auth.Config{Mode: "none"},
	}
	if change != nil {
		change(&cfg)
	}
	g, err := gateway.New(t.Context(), cfg, tel, conn, conn)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// request is a request as the tests write it: "GET /path", a body, headers as
// pairs of name and value.
func request(t *testing.T, line, body string, headers ...string) *http.Request {
	t.Helper()
	method, target, _ := strings.Cut(line, " ")
	var in io.Reader = http.NoBody
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(t.Context(), method, target, in)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func do(t *testing.T, g *gateway.Gateway, line, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, request(t, line, body, headers...))
	return w
}

// failure is a google.rpc.Status in JSON.
type failure struct {
	Code    codes.Code `json:"code"`
	Message string     `json:"message"`
	Details []struct {
		Type            string `json:"@type"`
		Reason          string `json:"reason"`
		Domain          string `json:"domain"`
		RetryDelay      string `json:"retryDelay"`
		FieldViolations []struct {
			Field       string `json:"field"`
			Description string `json:"description"`
		} `json:"fieldViolations"`
	} `json:"details"`
}

func (f failure) reason() string {
	for _, d := range f.Details {
		if d.Domain == "stoker" {
			return d.Reason
		}
	}
	return ""
}

func (f failure) field() string {
	for _, d := range f.Details {
		if len(d.FieldViolations) > 0 {
			return d.FieldViolations[0].Field
		}
	}
	return ""
}

func failed(t *testing.T, w *httptest.ResponseRecorder) failure {
	t.Helper()
	var f failure
	if kind := w.Header().Get("Content-Type"); kind != "application/json" {
		t.Errorf("Content-Type of an error: got %q, want application/json", kind)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil {
		t.Fatalf("an error must be a Status in JSON, got %q: %v", w.Body, err)
	}
	return f
}
