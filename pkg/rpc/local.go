package rpc

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Local is a server and the connection to it in one, for who is in the same
// process: a call is a function call on a copy of the message, with everything
// around it that a call over the network has (interceptors, trace, deadline,
// headers), but without a transport, and, but for NewStream, on the caller's own
// goroutine: a handler that heeds neither deadline nor departure holds its caller.
// What is called is registered on it, as on a grpc.Server. Of the options of a
// call, grpc.Header and grpc.Trailer are heeded.
type Local struct {
	chain   *chain
	calls   stats.Handler
	methods map[string]localMethod
	// streams serves what NewStream opens.
	streams    inprocgrpc.Channel
	propagator propagation.TextMapPropagator
	// maxRecv bounds a message to the server, in bytes as it would be sent.
	maxRecv int

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

type localMethod struct {
	impl   any
	unary  grpc.MethodHandler
	stream *grpc.StreamDesc
}

var (
	_ grpc.ClientConnInterface = (*Local)(nil)
	_ grpc.ServiceRegistrar    = (*Local)(nil)
)

// NewLocal returns a server like that of NewServer, which answers for health by
// the same state. MaxStreams bounds nothing: there is no connection, and who
// calls has its own limit. Answers are bounded as they are for Dial.
func NewLocal(cfg ServerConfig, health healthv1.HealthServer) (*Local, error) {
	c, calls, err := cfg.assemble()
	if err != nil {
		return nil, err
	}
	l := &Local{chain: c, calls: calls, methods: map[string]localMethod{}, propagator: cfg.Telemetry.Propagator, maxRecv: cfg.MaxRecvBytes}
	l.streams.WithServerStreamInterceptor(l.serveStream)
	healthv1.RegisterHealthServer(l, health)
	return l, nil
}

func (l *Local) serveUnary(ctx context.Context, req any, i *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	var resp any
	err := l.serve(ctx, i.FullMethod, &stats.Begin{}, func(ctx context.Context) (err error) {
		resp, err = l.chain.unary(ctx, req, i, next)
		return err
	})
	return resp, err
}

func (l *Local) serveStream(srv any, ss grpc.ServerStream, i *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	begin := &stats.Begin{IsClientStream: i.IsClientStream, IsServerStream: i.IsServerStream}
	return l.serve(ss.Context(), i.FullMethod, begin, func(ctx context.Context) error {
		return l.chain.stream(srv, &contextStream{ss, ctx}, i, next) //nolint:contextcheck // it is the stream's
	})
}

// serve runs a call between the events that a transport would tell the handler
// of. What the caller gets is what would go over the network: a status, and
// never the error behind it.
func (l *Local) serve(ctx context.Context, method string, begin *stats.Begin, run func(context.Context) error) error {
	if !l.enter() {
		return status.Error(codes.Unavailable, "the server has stopped")
	}
	defer l.running.Done()
	begin.BeginTime = time.Now()
	ctx = l.calls.TagRPC(ctx, &stats.RPCTagInfo{FullMethodName: method})
	l.calls.HandleRPC(ctx, begin)
	err := run(ctx)
	l.calls.HandleRPC(ctx, &stats.End{BeginTime: begin.BeginTime, EndTime: time.Now(), Error: err})
	if err != nil {
		err = status.Convert(err).Err()
	}
	return err
}

func (l *Local) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.running.Add(1)
	return true
}

// Stop refuses further calls, and waits for those that run for at most grace.
// Their callers end them.
func (l *Local) Stop(grace time.Duration) error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	done := make(chan struct{})
	go func() {
		l.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(grace):
		return fmt.Errorf("calls are still running after %v", grace)
	}
}

// RegisterService implements grpc.ServiceRegistrar. It must not be called once
// there are calls.
func (l *Local) RegisterService(desc *grpc.ServiceDesc, impl any) {
	name := func(method string) string { return "/" + desc.ServiceName + "/" + method }
	for _, m := range desc.Methods {
		l.methods[name(m.MethodName)] = localMethod{impl: impl, unary: m.Handler}
	}
	for i := range desc.Streams {
		l.methods[name(desc.Streams[i].StreamName)] = localMethod{impl: impl, stream: &desc.Streams[i]}
	}
	l.streams.RegisterService(desc, impl)
}

// Invoke implements grpc.ClientConnInterface.
func (l *Local) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	m := l.methods[method]
	if m.unary == nil {
		return status.Errorf(codes.Unimplemented, "no method %s", Shorten(method))
	}
	c, ctx, end, err := begin(ctx, method)
	if err != nil {
		return err
	}
	resp, err := m.unary(m.impl, ctx, func(in any) error { return copyMessage(in, args, l.maxRecv) }, l.serveUnary)
	end()
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = c.header
		case grpc.TrailerCallOption:
			*o.TrailerAddr = c.trailer
		}
	}
	if err != nil {
		return err
	}
	return copyMessage(reply, resp, maxAnswerBytes)
}

// Stream calls a method that takes one message and answers with a stream, and
// hands each answer to each, which must neither keep nor change it. An error of
// each ends the call, to the server as the caller's departure, and is returned.
func (l *Local) Stream(ctx context.Context, method string, args any, each func(answer any) error) error {
	m := l.methods[method]
	if m.stream == nil || m.stream.ClientStreams {
		return status.Errorf(codes.Unimplemented, "no method %s", Shorten(method))
	}
	c, ctx, end, err := begin(ctx, method)
	if err != nil {
		return err
	}
	defer end()
	s := &localStream{localCall: c, ctx: ctx, args: args, most: l.maxRecv, each: each}
	err = l.serveStream(m.impl, s, &grpc.StreamServerInfo{FullMethod: method, IsServerStream: true}, m.stream.Handler) //nolint:contextcheck // s has it
	if s.left != nil {
		return s.left
	}
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (l *Local) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = metadata.MD{}
	}
	traced := propagation.MapCarrier{}
	l.propagator.Inject(ctx, traced)
	for key, value := range traced {
		md.Set(key, value)
	}
	return l.streams.NewStream(metadata.NewOutgoingContext(ctx, md), desc, method, opts...)
}

// copyMessage copies a message that would otherwise be sent, and take at most so
// many bytes.
func copyMessage(to, from any, most int) error {
	dst, ok1 := to.(proto.Message)
	src, ok2 := from.(proto.Message)
	if !ok1 || !ok2 {
		return status.Errorf(codes.Internal, "%T and %T are no messages", to, from)
	}
	if n := sizeOf(src); n > most {
		return status.Errorf(codes.ResourceExhausted, "message of %d bytes, want at most %d", n, most)
	}
	proto.Reset(dst)
	proto.Merge(dst, src)
	return nil
}

func sizeOf(m proto.Message) int {
	if w, ok := m.(written); ok {
		return w.SizeVT()
	}
	return proto.Size(m)
}

// localCall is the server's transport of a call without one.
type localCall struct {
	method string

	mu              sync.Mutex
	over            bool
	header, trailer metadata.MD
}

var _ grpc.ServerTransportStream = (*localCall)(nil)

// begin makes a call for a caller that is still there. Its context ends with it;
// after end nothing can be added to it.
func begin(caller context.Context, method string) (c *localCall, ctx context.Context, end func(), err error) {
	if err := caller.Err(); err != nil {
		return nil, nil, nil, status.FromContextError(err).Err()
	}
	c = &localCall{method: method}
	ctx, cancel := context.WithCancel(c.context(caller))
	return c, ctx, func() {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.over = true
	}, nil
}

// context is what the server sees of a caller's: when it ends, the metadata that
// it sends, and the trace and baggage, but no other value.
func (c *localCall) context(caller context.Context) context.Context {
	ctx := context.Context(detached{caller})
	if span := trace.SpanContextFromContext(caller); span.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, span)
	}
	if b := baggage.FromContext(caller); b.Len() > 0 {
		ctx = baggage.ContextWithBaggage(ctx, b)
	}
	if md, ok := metadata.FromOutgoingContext(caller); ok {
		ctx = metadata.NewIncomingContext(ctx, md)
	}
	return grpc.NewContextWithServerTransportStream(ctx, c)
}

// Method implements grpc.ServerTransportStream.
func (c *localCall) Method() string { return c.method }

// SetHeader implements grpc.ServerTransportStream.
func (c *localCall) SetHeader(md metadata.MD) error { return c.add(&c.header, md) }

// SendHeader implements grpc.ServerTransportStream.
func (c *localCall) SendHeader(md metadata.MD) error { return c.add(&c.header, md) }

// SetTrailer implements grpc.ServerTransportStream.
func (c *localCall) SetTrailer(md metadata.MD) error { return c.add(&c.trailer, md) }

func (c *localCall) add(to *metadata.MD, md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return status.Error(codes.Internal, "the call is over")
	}
	*to = metadata.Join(*to, md)
	return nil
}

// localStream is the server's end of a stream of answers.
type localStream struct {
	*localCall
	ctx  context.Context //nolint:containedctx // a stream's context is a method of the stream
	args any
	most int
	each func(any) error
	left error // why each ended the call
}

// Context implements grpc.ServerStream.
func (s *localStream) Context() context.Context { return s.ctx }

// SetTrailer implements grpc.ServerStream.
func (s *localStream) SetTrailer(md metadata.MD) { _ = s.localCall.SetTrailer(md) }

// RecvMsg implements grpc.ServerStream: there is one message.
func (s *localStream) RecvMsg(m any) error {
	if s.args == nil {
		return io.EOF
	}
	err := copyMessage(m, s.args, s.most)
	s.args = nil
	return err
}

// SendMsg implements grpc.ServerStream.
func (s *localStream) SendMsg(m any) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if s.left = s.each(m); s.left != nil {
		return status.Error(codes.Canceled, "the caller went away")
	}
	return nil
}

// detached is a context without its values.
type detached struct{ context.Context } //nolint:containedctx // it is one

// Value returns nil, but to the context package itself, which asks what ends
// this context by a key of its own (an *int), and starts a goroutine for each
// context made of this one where it is not told.
func (d detached) Value(key any) any {
	if _, own := key.(*int); own {
		return d.Context.Value(key)
	}
	return nil
}
