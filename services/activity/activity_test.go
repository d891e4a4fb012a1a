package activity

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDefaultsAreValid(t *testing.T) {
	cfg := Default()
	fs := pflag.NewFlagSet("activity", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse([]string{"--flush-interval", "1s"}); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil || cfg.FlushInterval != time.Second {
		t.Errorf("%v, flush interval %s", err, cfg.FlushInterval)
	}
}

func TestValidateSaysEverythingAtOnce(t *testing.T) {
	cfg := Default()
	cfg.GRPCAddr, cfg.StoreAddr, cfg.Group, cfg.Consumer = "0.0.0.0:1", "", "a b", "c/d"
	cfg.FlushInterval, cfg.Window, cfg.MaxTracked = 0, 1, 0
	cfg.Rules = filepath.Join(t.TempDir(), "missing.yaml")
	err := cfg.Validate()
	for _, flag := range []string{"grpc-addr", "store-addr", "group", "consumer", "flush-interval", "window", "max-tracked", "rules"} {
		if err == nil || !strings.Contains(err.Error(), "--"+flag) {
			t.Errorf("%v\nwant --%s in it", err, flag)
		}
	}
}

func TestRulesFileIsChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte("activityRules:\n  - {pattern: \"a b\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Default()
	cfg.Rules = path
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "activityRules[0].pattern") {
		t.Errorf("got %v", err)
	}
}

func TestConsumerNamesAreValidAndDifferent(t *testing.T) {
	a, b := consumerName(), consumerName()
	if a == b || !nameInFeed.MatchString(a) || len(a) > 128 {
		t.Errorf("%q and %q", a, b)
	}
}

// store is one session, one event and a record of what it was asked.
type store struct {
	sessionv1.UnimplementedStorageServiceServer

	acked chan string
}

const causeTrace, causeSpan = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

func (s *store) Feed(stream grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	err := stream.Send(&sessionv1.FeedResponse{Assignment: true, Entries: []*sessionv1.FeedEntry{{
		Cursor: "1-0", SessionId: "known", AppendTime: timestamppb.Now(),
		Event: &sessionv1.Event{Id: "e", Type: "chat:send", Origin: sessionv1.Event_USER, Time: timestamppb.Now(), Traceparent: "00-" + causeTrace + "-" + causeSpan + "-01"},
	}}, Shards: []int32{0}})
	for err == nil {
		var req *sessionv1.FeedRequest
		if req, err = stream.Recv(); err == nil {
			for _, a := range req.GetAcks() {
				s.acked <- a.GetCursor()
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *store) BatchGetSessions(_ context.Context, req *sessionv1.BatchGetSessionsRequest) (*sessionv1.BatchGetSessionsResponse, error) {
	sess := &sessionv1.Session{Id: req.GetIds()[0], ExpireTime: timestamppb.New(time.Now().Add(time.Hour))}
	return &sessionv1.BatchGetSessionsResponse{Results: []*sessionv1.BatchGetSessionsResponse_Result{{Id: sess.GetId(), Answer: &sessionv1.BatchGetSessionsResponse_Result_Session{Session: sess}}}}, nil
}

func (s *store) ExplainTTL(_ context.Context, req *sessionv1.ExplainTTLRequest) (*sessionv1.TTLExplanation, error) {
	if req.GetId() != "known" {
		return nil, status.Error(codes.NotFound, "no such session")
	}
	return &sessionv1.TTLExplanation{LastActivityKind: "chat", Decisions: []*sessionv1.Decision{{Reason: "enough left"}}}, nil
}

func (s *store) ListEvents(context.Context, *sessionv1.ListEventsRequest) (*sessionv1.ListEventsResponse, error) {
	return &sessionv1.ListEventsResponse{}, nil
}

func (s *store) BatchExtendTTL(_ context.Context, req *sessionv1.BatchExtendTTLRequest) (*sessionv1.BatchExtendTTLResponse, error) {
	return &sessionv1.BatchExtendTTLResponse{Results: []*sessionv1.BatchExtendTTLResponse_Result{{
		Id:     req.GetItems()[0].GetId(),
		Answer: &sessionv1.BatchExtendTTLResponse_Result_Response{Response: &sessionv1.ExtendTTLResponse{Outcome: sessionv1.ExtendTTLResponse_NOT_NEEDED}},
	}}}, nil
}

// serve runs a gRPC server in memory and returns a connection to it.
func serve(t *testing.T, tel *telemetry.Telemetry, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	cfg := auth.Config{Mode: "none"}
	authenticator, err := cfg.Authenticator()
	if err != nil {
		t.Fatal(err)
	}
	srv, _, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authenticator})
	if err != nil {
		t.Fatal(err)
	}
	register(srv)
	pipe := rpc.NewPipe()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(pipe.Listener()) }()
	conn, err := rpc.Dial(rpc.PipeTarget, tel, pipe.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		<-served
	})
	return conn
}

// The service as a whole, between two in-memory connections: from a feed's
// event to the acknowledgement, the answer by RPC and the trace.
func TestService(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	tel := telemetry.Nop()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	defer func() { _ = provider.Shutdown(context.Background()) }()
	tel.Tracer = provider

	fake := &store{acked: make(chan string, 10)}
	cfg := Default()
	cfg.FlushInterval = 20 * time.Millisecond
	conn := serve(t, tel, func(r grpc.ServiceRegistrar) { sessionv1.RegisterStorageServiceServer(r, fake) })
	svc, err := New(cfg, tel, conn)
	if err != nil {
		t.Fatal(err)
	}
	if svc.Ready(t.Context()) == nil {
		t.Error("ready before it reads the feed")
	}
	client := activityv1.NewActivityServiceClient(serve(t, tel, svc.Register))
	ran := make(chan error, 1)
	go func() { ran <- svc.Run(t.Context()) }()

	select {
	case cursor := <-fake.acked:
		if cursor != "1-0" {
			t.Errorf("acknowledged %q", cursor)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing acknowledged within 10 s")
	}
	if err := svc.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	got, err := client.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "known"})
	if err != nil || got.GetLastActivityKind() != "chat" || len(got.GetDecisions()) != 1 {
		t.Errorf("activity %v %v", got, err)
	}
	if _, err := client.GetActivity(t.Context(), &activityv1.GetActivityRequest{Id: "unknown"}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown session: %v", err)
	}
	if _, err := client.GetActivity(t.Context(), &activityv1.GetActivityRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no id: %v", err)
	}

	if err := svc.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if svc.Close(t.Context()) != nil || svc.Run(t.Context()) == nil {
		t.Error("closed twice is no error, run after close is one")
	}

	var process, call sdktrace.ReadOnlySpan
	for _, s := range spans.Ended() {
		switch s.Name() {
		case "process feed":
			process = s
		case "stoker.session.v1.StorageService/BatchExtendTTL":
			if s.SpanKind().String() == "client" {
				call = s
			}
		}
	}
	if process == nil || call == nil {
		t.Fatalf("spans: %v", spans.Ended())
	}
	if l := process.Links(); len(l) != 1 || l[0].SpanContext.TraceID().String() != causeTrace || l[0].SpanContext.SpanID().String() != causeSpan {
		t.Errorf("links %v, want the event's span", l)
	}
	if call.Parent().SpanID() != process.SpanContext().SpanID() {
		t.Error("BatchExtendTTL is no child of the span that processes the feed")
	}
}

func TestCloseBeforeRun(t *testing.T) {
	tel := telemetry.Nop()
	svc, err := New(Default(), tel, serve(t, tel, func(grpc.ServiceRegistrar) {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if svc.Run(t.Context()) == nil {
		t.Error("ran after close")
	}
}
