package rpc

import (
	"context"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/telemetry"
)

// newServerStats returns what traces and times each call: a callStats, or
// otelgrpc itself where the environment asks for conventions of the past, which
// only that knows.
func newServerStats(t *telemetry.Telemetry) (stats.Handler, error) {
	if strings.Contains(os.Getenv("OTEL_SEMCONV_STABILITY_OPT_IN"), "rpc/") {
		return otelgrpc.NewServerHandler(append(otelOptions(t), otelgrpc.WithFilter(filters.Not(filters.HealthCheck())))...), nil
	}
	duration, err := rpcconv.NewServerCallDuration(
		t.Meter.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL)),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10))
	if err != nil {
		return nil, err
	}
	s := &callStats{tel: t, tracer: t.Tracer.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL)), duration: duration.Inst()}
	s.methods.Store(&map[string]*method{})
	return s, nil
}

const scopeName = "github.com/livinguniverse/stoker/pkg/rpc"

// callStats traces and times calls by the semantic conventions for gRPC, as
// otelgrpc does. It exists for its cost: what is the same for every call of a
// method is made once, metadata is read where it is, and all it remembers of a
// call is one allocation.
type callStats struct {
	tel      *telemetry.Telemetry
	tracer   trace.Tracer
	duration metric.Float64Histogram
	// methods are those that the server has, by full name; the map is replaced
	// as a whole. What callers make up is never kept.
	methods atomic.Pointer[map[string]*method]
	mu      sync.Mutex
}

// method is what all calls of a method have in common.
type method struct {
	fullName string
	// name is the full name without the slash before it.
	name string
	kept atomic.Bool
	// probe is true for health checks, which are neither traced nor timed.
	probe bool
	attrs []attribute.KeyValue
	// timed are the attributes of the duration by code, made when they are
	// first needed.
	timed [codes.Unauthenticated + 1]atomic.Pointer[[]metric.RecordOption]
}

func newMethod(fullName string) *method {
	m := &method{fullName: fullName, name: fullName, probe: filters.HealthCheck()(&stats.RPCTagInfo{FullMethodName: fullName})}
	if name, ok := strings.CutPrefix(fullName, "/"); ok {
		m.name = name
		m.attrs = append(m.attrs, semconv.RPCMethod(name))
	}
	m.attrs = append(m.attrs, semconv.RPCSystemNameGRPC)
	return m
}

// record returns the attributes of a call that ended with a code.
func (m *method) record(c codes.Code) []metric.RecordOption {
	if int(c) < len(m.timed) {
		if known := m.timed[c].Load(); known != nil {
			return *known
		}
	}
	attrs := append(make([]attribute.KeyValue, 0, len(m.attrs)+2), m.attrs...)
	attrs = append(attrs, semconv.RPCResponseStatusCode(codeName(c)))
	if faulty(c) {
		attrs = append(attrs, semconv.ErrorTypeKey.String(codeName(c)))
	}
	made := []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(attrs...))}
	if int(c) < len(m.timed) {
		m.timed[c].Store(&made)
	}
	return made
}

// call is one call under way. It is the context of the call, so that the two
// are one allocation, and reads the metadata that came with it.
type call struct {
	context.Context //nolint:containedctx // it is one

	method   *method
	span     trace.Span
	incoming context.Context //nolint:containedctx // the one that came, while metadata is read from it
}

type callKey struct{}

// Value returns the call itself for its own key.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// Get implements propagation.TextMapCarrier.
func (c *call) Get(key string) string {
	values := metadata.ValueFromIncomingContext(c.incoming, key)
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// Set implements propagation.TextMapCarrier, of which only the reading half is
// needed.
func (c *call) Set(string, string) {}

// Keys implements propagation.TextMapCarrier.
func (c *call) Keys() []string {
	md, _ := metadata.FromIncomingContext(c.incoming)
	keys := make([]string, 0, len(md))
	for k := range md {
		keys = append(keys, k)
	}
	return keys
}

// TagConn implements stats.Handler.
func (*callStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (*callStats) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC starts a call's span, below that of its caller.
func (s *callStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	m := s.method(info.FullMethodName)
	c := &call{method: m, incoming: ctx}
	ctx = s.tel.Propagator.Extract(ctx, c)
	if m.probe {
		return ctx
	}
	c.Context, c.span = s.tracer.Start(ctx, m.name, asServer...) //nolint:spancheck // HandleRPC ends it
	// No sampler of ours looks at attributes, and few calls are sampled.
	if c.span.IsRecording() {
		c.span.SetAttributes(m.attrs...)
	}
	return c
}

var asServer = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}

func (s *callStats) method(fullName string) *method {
	if m := (*s.methods.Load())[fullName]; m != nil {
		return m
	}
	return newMethod(fullName)
}

// keep remembers a method.
func (s *callStats) keep(m *method) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := maps.Clone(*s.methods.Load())
	known[m.fullName] = m
	m.kept.Store(true)
	s.methods.Store(&known)
}

// HandleRPC implements stats.Handler.
func (s *callStats) HandleRPC(ctx context.Context, event stats.RPCStats) {
	switch e := event.(type) {
	case *stats.InHeader:
		if c, ok := ctx.Value(callKey{}).(*call); ok && e.LocalAddr != nil && c.span.IsRecording() {
			c.span.SetAttributes(serverAddress(e.LocalAddr.String())...)
		}
	case *stats.Begin:
		// Only a call of a method that there is gets here.
		if c, ok := ctx.Value(callKey{}).(*call); ok && !c.method.kept.Load() {
			s.keep(c.method)
		}
	case *stats.End:
		if c, ok := ctx.Value(callKey{}).(*call); ok {
			s.end(c, e) //nolint:contextcheck // a call is its context
		}
	}
}

func (s *callStats) end(c *call, e *stats.End) {
	st, _ := status.FromError(e.Error)
	if c.span.IsRecording() {
		if faulty(st.Code()) {
			c.span.SetStatus(otelcodes.Error, st.Message())
		}
		c.span.SetAttributes(semconv.RPCResponseStatusCode(codeName(st.Code())))
		c.span.End()
	}
	if s.duration.Enabled(c) {
		s.duration.Record(c, e.EndTime.Sub(e.BeginTime).Seconds(), c.method.record(st.Code())...)
	}
}

// faulty says whether a code is the server's fault: the conventions count no
// other as an error of a server.
func faulty(c codes.Code) bool {
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	default:
		return false
	}
}

// codeName spells a code as the conventions do: INVALID_ARGUMENT.
func codeName(c codes.Code) string {
	if name, ok := code.Code_name[int32(c)]; ok { //nolint:gosec // as large as the wire's
		return name
	}
	return "CODE(" + strconv.FormatUint(uint64(c), 10) + ")"
}

func serverAddress(hostPort string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return []attribute.KeyValue{semconv.ServerAddress(hostPort)} // a socket's path
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return []attribute.KeyValue{semconv.ServerAddress(host)}
	}
	return []attribute.KeyValue{semconv.ServerAddress(host), semconv.ServerPort(n)}
}
