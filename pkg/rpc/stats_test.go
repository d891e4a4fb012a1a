package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// telling answers a session with the code its id names, and writes down what
// its context says of the caller.
type telling struct {
	sessionv1.UnimplementedStorageServiceServer
	mu   sync.Mutex
	seen []string
}

func (s *telling) GetSession(ctx context.Context, req *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
	sc := trace.SpanContextFromContext(ctx)
	s.mu.Lock()
	s.seen = append(s.seen, fmt.Sprintf("%s trace %v sampled %v baggage %q", req.GetId(), sc.HasTraceID(), sc.IsSampled(), baggage.FromContext(ctx)))
	s.mu.Unlock()
	var c codes.Code
	if err := c.UnmarshalJSON([]byte(`"` + req.GetId() + `"`)); err != nil {
		return nil, errors.New("no status")
	}
	return &sessionv1.Session{}, status.Error(c, "because")
}

func (s *telling) WatchEvents(_ *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error {
	return stream.Send(&sessionv1.WatchEventsResponse{})
}

// observed makes calls of every kind of end to a server with a stats handler,
// and returns all that is told of them.
func observed(t *testing.T, handler func(*telemetry.Telemetry) stats.Handler) []string {
	t.Helper()
	spans, reader := tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()
	tel := telemetry.Nop()
	tel.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	tel.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	srv := grpc.NewServer(grpc.StatsHandler(handler(tel)), grpc.MaxRecvMsgSize(1000))
	service := &telling{}
	sessionv1.RegisterStorageServiceServer(srv, service)
	healthv1.RegisterHealthServer(srv, health.NewServer())
	pipe := NewPipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(pipe.Listener())
	}()
	conn, err := grpc.NewClient(PipeTarget, grpc.WithTransportCredentials(insecure.NewCredentials()), pipe.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	callAll(t, conn)
	_ = conn.Close()
	srv.GracefulStop()
	<-served
	slices.Sort(service.seen)
	return append(service.seen, told(t, spans, reader)...)
}

func callAll(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	ctx := t.Context()
	client := sessionv1.NewStorageServiceClient(conn)
	get := func(ctx context.Context, id string) {
		_, _ = client.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id})
	}
	for _, id := range []string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
		"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED", "77", "none",
		strings.Repeat("too large ", 200),
	} {
		for range 2 { // the first of a kind, and one after
			get(ctx, id)
		}
	}
	for _, flags := range []string{"00", "01"} {
		get(metadata.AppendToOutgoingContext(ctx, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"+flags, "tracestate", "a=b", "baggage", "k=v"), "OK")
	}
	get(metadata.AppendToOutgoingContext(ctx, "traceparent", "nonsense"), "OK")
	_ = conn.Invoke(ctx, "/stoker.session.v1.StorageService/Nothing", &emptypb.Empty{}, &emptypb.Empty{})
	_ = conn.Invoke(ctx, "/nothing", &emptypb.Empty{}, &emptypb.Empty{})
	_, _ = client.CreateSession(ctx, &sessionv1.CreateSessionRequest{})
	if w, err := client.WatchEvents(ctx, &sessionv1.WatchEventsRequest{}); err == nil {
		for err == nil {
			_, err = w.Recv()
		}
	}
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
}

// told spells spans and metrics, but for what differs from run to run.
func told(t *testing.T, spans *tracetest.SpanRecorder, reader sdkmetric.Reader) []string {
	t.Helper()
	var out []string
	for _, s := range spans.Ended() {
		attrs := attribute.NewSet(s.Attributes()...)
		out = append(out, fmt.Sprintf("span %s %v %v [%s] below %s remote %v state %q links %d events %d", s.Name(), s.SpanKind(), s.Status(),
			attrs.Encoded(attribute.DefaultEncoder()), s.Parent().SpanID(), s.Parent().IsValid() && s.Parent().IsRemote(), s.SpanContext().TraceState(), len(s.Links()), len(s.Events())))
	}
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	for _, scope := range metrics.ScopeMetrics {
		for _, m := range scope.Metrics {
			h, ok := m.Data.(metricdata.Histogram[float64])
			if !ok {
				t.Fatalf("%s is a %T", m.Name, m.Data)
			}
			for _, p := range h.DataPoints {
				out = append(out, fmt.Sprintf("metric %s %s %s %v [%s] %d in %v", m.Name, m.Unit, m.Description, h.Temporality,
					p.Attributes.Encoded(attribute.DefaultEncoder()), p.Count, p.Bounds))
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestStatsTellWhatOtelgrpcTells: being cheaper is the only difference.
func TestStatsTellWhatOtelgrpcTells(t *testing.T) {
	want := observed(t, func(tel *telemetry.Telemetry) stats.Handler {
		return otelgrpc.NewServerHandler(append(otelOptions(tel), otelgrpc.WithFilter(filters.Not(filters.HealthCheck())))...)
	})
	var handler *callStats
	got := observed(t, func(tel *telemetry.Telemetry) stats.Handler {
		h, err := newServerStats(tel)
		if err != nil {
			t.Fatal(err)
		}
		handler, _ = h.(*callStats)
		return h
	})
	if len(want) < 60 {
		t.Fatalf("only %d things were told: %s", len(want), strings.Join(want, "\n"))
	}
	if len(got) != len(want) {
		t.Errorf("otelgrpc tells %d things, and this %d", len(want), len(got))
	}
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			t.Fatalf("otelgrpc tells\n%s\nand this\n%s", want[i], got[i])
		}
	}
	if n := len(*handler.methods.Load()); n != 3 {
		t.Errorf("%d methods are remembered, want the 3 that were called and are there", n)
	}
}

func TestConventionsOfThePastAreOtelgrpcs(t *testing.T) {
	t.Setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http/dup,rpc/dup")
	h, err := newServerStats(telemetry.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if _, ours := h.(*callStats); ours {
		t.Error("the environment asks for conventions that only otelgrpc knows")
	}
}
