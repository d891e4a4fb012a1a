package sessionstore

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/lifecycle"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// BenchmarkCall measures what a call costs the process that serves it: the
// callers are a process of their own. "stoker" is everything that Run puts in
// front of the embedded store, with one trace in a hundred exported; "echo" is
// a bare gRPC server that answers with messages of the same size, and leaves
// Go's defaults alone.
func BenchmarkCall(b *testing.B) {
	callers := startCallers(b)
	stoker, client := benchedStore(b, callers.Sink)
	sess, err := client.CreateSession(b.Context(), &sessionv1.CreateSessionRequest{
		User: "ann", Project: "demo", Labels: map[string]string{"client": "web", "region": "eu-central", "tier": "standard"},
		Data: structpb.NewStringValue(strings.Repeat("stoker ", 29)),
	})
	if err != nil {
		b.Fatal(err)
	}
	echo := benchedEcho(b, sess)
	for _, what := range []string{callGet, callAppend} {
		for _, n := range []int{1, 64} {
			for _, to := range []struct{ name, addr string }{{"echo", echo}, {"stoker", stoker}} {
				b.Run(fmt.Sprintf("%s/callers=%d/%s", what, n, to.name), func(b *testing.B) {
					if to.addr == stoker {
						defer lifecycle.KeepHeapRoom(lifecycle.HeapRoom)()
					}
					run := callRun{Addr: to.addr, What: what, Session: sess.GetId(), Callers: n}
					run.Calls = 2000
					callers.call(b, run)
					measure(b, func() { run.Calls = b.N; callers.call(b, run) })
				})
			}
		}
	}
}

// measure reports what this process spends in do, per call.
func measure(b *testing.B, do func()) {
	b.Helper()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	used := cpuTime(b)
	b.ResetTimer()
	do()
	b.StopTimer()
	used = cpuTime(b) - used
	runtime.ReadMemStats(&after)
	n := float64(b.N)
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/call")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/n, "B/call")
	b.ReportMetric(float64(used.Nanoseconds())/n, "cpu-ns/call")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchedStore serves a store with everything on, and returns where.
func benchedStore(b *testing.B, sink string) (string, sessionv1.StorageServiceClient) {
	b.Helper()
	for name, value := range map[string]string{
		"OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
		"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": sink,
		"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01",
	} {
		b.Setenv(name, value)
	}
	tel, err := telemetry.Setup(b.Context(), telemetry.Config{ServiceName: "bench", Version: "1", LogLevel: "info", LogFormat: "json"}, b.Output())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	s, err := New(b.Context(), *configured(b), tel)
	if err != nil {
		b.Fatal(err)
	}
	authn, err := (&auth.Config{Mode: auth.ModeNone}).Authenticator()
	if err != nil {
		b.Fatal(err)
	}
	srv, hs, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: ErrorMapper, Plain: Plain, BeforeAnswer: s.BeforeAnswer})
	if err != nil {
		b.Fatal(err)
	}
	s.Register(srv)
	sweeping, stop := context.WithCancel(context.Background())
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		_ = s.Run(sweeping, hs) // else the feed, which nobody reads, would grow
	}()
	b.Cleanup(func() {
		stop()
		<-swept
		_ = s.Close()
	})
	addr := benched(b, srv)
	conn, err := rpc.Dial(addr, telemetry.Nop())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return addr, sessionv1.NewStorageServiceClient(conn)
}

// echoServer answers with messages of the size that the store's have.
type echoServer struct {
	sessionv1.UnimplementedStorageServiceServer
	session *sessionv1.Session
}

func (e *echoServer) GetSession(context.Context, *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
	return e.session, nil
}

func (e *echoServer) AppendEvents(_ context.Context, req *sessionv1.AppendEventsRequest) (*sessionv1.AppendEventsResponse, error) {
	return &sessionv1.AppendEventsResponse{Cursors: slices.Repeat([]string{"1795526267536-0"}, len(req.GetEvents()))}, nil
}

func benchedEcho(b *testing.B, sess *sessionv1.Session) string {
	b.Helper()
	srv := grpc.NewServer()
	sessionv1.RegisterStorageServiceServer(srv, &echoServer{session: sess})
	return benched(b, srv)
}

func benched(b *testing.B, srv *grpc.Server) string {
	b.Helper()
	lis, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(lis)
	}()
	b.Cleanup(func() {
		srv.Stop()
		<-served
		http.DefaultClient.CloseIdleConnections()
	})
	return lis.Addr().String()
}
