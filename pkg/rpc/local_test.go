package rpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// local is a server for anybody, changed.
func local(t *testing.T, change func(*rpc.ServerConfig)) *rpc.Local {
	t.Helper()
	cfg, _ := configure(anybody(t))
	if change != nil {
		change(&cfg)
	}
	l, err := rpc.NewLocal(cfg, health.NewServer())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// keeper keeps the session that it was given, and answers with it.
type keeper struct {
	sessionv1.UnimplementedStorageServiceServer
	got     *sessionv1.CreateSessionRequest
	labels  map[string]string // to answer with; those it was given where nil
	session *sessionv1.Session
}

func (k *keeper) CreateSession(_ context.Context, req *sessionv1.CreateSessionRequest) (*sessionv1.Session, error) {
	k.got, k.session = req, &sessionv1.Session{Id: "s", Labels: req.GetLabels()}
	if k.labels != nil {
		k.session.Labels = k.labels
	}
	return k.session, nil
}

// TestLocalSharesNoMessage: neither side sees what the other does to its message
// afterwards.
func TestLocalSharesNoMessage(t *testing.T) {
	l := local(t, nil)
	k := &keeper{}
	sessionv1.RegisterStorageServiceServer(l, k)
	req := &sessionv1.CreateSessionRequest{Labels: map[string]string{"a": "1"}}
	s, err := sessionv1.NewStorageServiceClient(l).CreateSession(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	req.Labels["a"], s.Labels["a"] = "request", "answer"
	if k.got.GetLabels()["a"] != "1" || k.session.GetLabels()["a"] != "1" {
		t.Errorf("the server has %v and %v", k.got, k.session)
	}
}

// TestLocalIsTracedAndTimed: the server's span is below its caller's, and what
// is told of a call's duration is the call's.
func TestLocalIsTracedAndTimed(t *testing.T) {
	spans, reader := tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()
	tel := telemetry.Nop()
	tel.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	tel.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	l := local(t, func(cfg *rpc.ServerConfig) { cfg.Telemetry = tel })
	var inside trace.SpanContext
	sessionv1.RegisterStorageServiceServer(l, &fake{
		get: func(ctx context.Context) error {
			inside = trace.SpanContextFromContext(ctx)
			time.Sleep(20 * time.Millisecond) // what is to be seen in the metric
			return nil
		},
		feed: func(sessionv1.StorageService_FeedServer) error { return errors.New("broken") },
	})
	ctx, caller := tel.Tracer.Tracer("test").Start(t.Context(), "caller")
	client := sessionv1.NewStorageServiceClient(l)
	given := metadata.AppendToOutgoingContext(ctx, "authorization", "ann")
	if _, err := client.GetSession(given, &sessionv1.GetSessionRequest{Id: "x"}); err != nil {
		t.Fatal(err)
	}
	if md, _ := metadata.FromOutgoingContext(given); md.Len() != 1 {
		t.Errorf("the caller's metadata has become %v", md)
	}
	stream, err := client.Feed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal || status.Convert(err).Message() != "internal error" {
		t.Errorf("a broken stream: %v", err)
	}
	if err := l.Stop(10 * time.Second); err != nil {
		t.Error(err)
	}
	for _, s := range spans.Ended() {
		if s.Parent().SpanID() != caller.SpanContext().SpanID() || s.SpanContext().TraceID() != caller.SpanContext().TraceID() {
			t.Errorf("%s is below %v", s.Name(), s.Parent())
		}
	}
	if ended := spans.Ended(); len(ended) != 2 || ended[0].SpanContext().SpanID() != inside.SpanID() {
		t.Errorf("%d spans, and inside of the call %v", len(ended), inside)
	}
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	durations, ok := metrics.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64])
	if !ok || len(durations.DataPoints) != 2 {
		t.Fatalf("%+v", metrics)
	}
	for _, p := range durations.DataPoints {
		if p.Count != 1 || p.Sum > 10 {
			t.Errorf("took %v s", p.Sum)
		}
	}
}

// TestLocalStops: who calls later is refused, and who still runs is waited for,
// but not for ever.
func TestLocalStops(t *testing.T) {
	l := local(t, nil)
	begun := make(chan struct{})
	sessionv1.RegisterStorageServiceServer(l, &fake{get: func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}})
	client := sessionv1.NewStorageServiceClient(l)
	ctx, leave := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := client.GetSession(ctx, &sessionv1.GetSessionRequest{Id: "x"})
		answered <- err
	}()
	<-begun
	if err := l.Stop(time.Millisecond); err == nil {
		t.Error("stopped with a call that runs")
	}
	if _, err := client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: "x"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a call after the end: %v", err)
	}
	leave()
	if err := <-answered; status.Code(err) != codes.Canceled {
		t.Errorf("the caller that left: %v", err)
	}
	if err := l.Stop(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// watcher answers with events until it has sent as many as it has, or each has
// had enough.
type watcher struct {
	sessionv1.UnimplementedStorageServiceServer
	events int
	sent   int
	failed error
}

func (w *watcher) WatchEvents(req *sessionv1.WatchEventsRequest, stream sessionv1.StorageService_WatchEventsServer) error {
	if err := grpc.SetTrailer(stream.Context(), metadata.Pairs("a", "b")); err != nil {
		return err
	}
	for w.sent = range w.events {
		if w.failed = stream.Send(&sessionv1.WatchEventsResponse{Cursor: req.GetId()}); w.failed != nil {
			return w.failed
		}
	}
	return nil
}

// TestLocalStreamsAnswers to their end, to the caller's, and to its departure.
func TestLocalStreamsAnswers(t *testing.T) {
	enough := errors.New("enough")
	for name, tt := range map[string]struct {
		id     string
		events int
		take   int
		code   codes.Code
		sent   int
	}{
		"to the end":  {"x", 3, 10, codes.OK, 2},
		"none":        {"x", 0, 10, codes.OK, 0},
		"had enough":  {"x", 100, 5, codes.Unknown, 4},
		"not allowed": {"", 3, 10, codes.InvalidArgument, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := local(t, nil)
			w := &watcher{events: tt.events}
			sessionv1.RegisterStorageServiceServer(l, w)
			got := 0
			err := l.Stream(t.Context(), sessionv1.StorageService_WatchEvents_FullMethodName, &sessionv1.WatchEventsRequest{Id: tt.id}, func(answer any) error {
				if m, ok := answer.(*sessionv1.WatchEventsResponse); !ok || m.GetCursor() != tt.id {
					t.Errorf("got %v", answer)
				}
				if got++; got == tt.take {
					return enough
				}
				return nil
			})
			if tt.take < tt.events && (!errors.Is(err, enough) || status.Code(w.failed) != codes.Canceled) {
				t.Errorf("the caller gets %v, and the server %v", err, w.failed)
			}
			if status.Code(err) != tt.code || w.sent != tt.sent {
				t.Errorf("sent up to %d, ended by %v", w.sent, err)
			}
		})
	}
	t.Run("left", func(t *testing.T) {
		l := local(t, nil)
		w := &watcher{events: 100}
		sessionv1.RegisterStorageServiceServer(l, w)
		ctx, leave := context.WithCancel(t.Context())
		err := l.Stream(ctx, sessionv1.StorageService_WatchEvents_FullMethodName, &sessionv1.WatchEventsRequest{Id: "x"}, func(any) error {
			leave()
			return nil
		})
		if status.Code(err) != codes.Canceled || w.sent != 1 {
			t.Errorf("sent up to %d, ended by %v", w.sent, err)
		}
	})
	t.Run("no such", func(t *testing.T) {
		l := local(t, nil)
		sessionv1.RegisterStorageServiceServer(l, &watcher{})
		for _, method := range []string{"/nothing", sessionv1.StorageService_GetSession_FullMethodName, sessionv1.StorageService_Feed_FullMethodName} {
			if err := l.Stream(t.Context(), method, nil, nil); status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: %v", method, err)
			}
		}
		if err := l.Invoke(t.Context(), sessionv1.StorageService_WatchEvents_FullMethodName, nil, nil); status.Code(err) != codes.Unimplemented {
			t.Error(err)
		}
	})
}

// TestLocalKeepsToLimits that a transport would set: the size of messages, and
// callers that have left already.
func TestLocalKeepsToLimits(t *testing.T) {
	l := local(t, func(cfg *rpc.ServerConfig) { cfg.MaxRecvBytes = 1000 })
	k := &keeper{}
	sessionv1.RegisterStorageServiceServer(l, k)
	client := sessionv1.NewStorageServiceClient(l)
	large := &sessionv1.CreateSessionRequest{Labels: map[string]string{"a": strings.Repeat("x", 1000)}}
	if _, err := client.CreateSession(t.Context(), large); status.Code(err) != codes.ResourceExhausted || k.got != nil {
		t.Errorf("a large message: %v", err)
	}
	k.labels = map[string]string{"a": strings.Repeat("x", 64<<20)}
	if _, err := client.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{}); status.Code(err) != codes.ResourceExhausted || k.got == nil {
		t.Errorf("a large answer: %v", err)
	}
	k.got = nil
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := client.CreateSession(ctx, &sessionv1.CreateSessionRequest{}); status.Code(err) != codes.Canceled || k.got != nil {
		t.Errorf("a caller that has left: %v", err)
	}
}

// TestLocalCallsEnd: what a handler leaves behind can add nothing to an answer,
// and is told that the call is over.
func TestLocalCallsEnd(t *testing.T) {
	l := local(t, nil)
	left := make(chan error)
	sessionv1.RegisterStorageServiceServer(l, &fake{get: func(ctx context.Context) error {
		go func() {
			for grpc.SetHeader(ctx, metadata.Pairs("late", "x")) == nil {
				time.Sleep(time.Microsecond)
			}
			<-ctx.Done()
			left <- ctx.Err()
		}()
		return nil
	}})
	var h metadata.MD
	if _, err := sessionv1.NewStorageServiceClient(l).GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: "x"}, grpc.Header(&h)); err != nil {
		t.Fatal(err)
	}
	if h.Get("answered") == nil {
		t.Errorf("headers %v", h)
	}
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
