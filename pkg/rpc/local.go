package rpc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fullstorydev/grpchan/inprocgrpc"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Local is a server and the connection to it in one, for who is in the same
// process: a call is a function call on a copy of the message, with everything
// around it that a call over the network has (interceptors, trace, deadline,
// headers), but without a transport. What is called is registered on it, as on a
// grpc.Server.
type Local struct {
	channel    inprocgrpc.Channel
	propagator propagation.TextMapPropagator

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

var (
	_ grpc.ClientConnInterface = (*Local)(nil)
	_ grpc.ServiceRegistrar    = (*Local)(nil)
)

// NewLocal returns a server like that of NewServer, which answers for health by
// the same state. MaxRecvBytes and MaxStreams bound nothing: there is no
// connection, and who calls has its own limits.
func NewLocal(cfg ServerConfig, health healthv1.HealthServer) (*Local, error) {
	c, calls, err := cfg.assemble()
	if err != nil {
		return nil, err
	}
	l := &Local{propagator: cfg.Telemetry.Propagator}
	l.channel.WithServerUnaryInterceptor(func(ctx context.Context, req any, i *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		var resp any
		err := l.serve(ctx, calls, i.FullMethod, &stats.Begin{}, func(ctx context.Context) (err error) {
			resp, err = c.unary(ctx, req, i, next)
			return err
		})
		return resp, err
	})
	l.channel.WithServerStreamInterceptor(func(srv any, ss grpc.ServerStream, i *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		begin := &stats.Begin{IsClientStream: i.IsClientStream, IsServerStream: i.IsServerStream}
		return l.serve(ss.Context(), calls, i.FullMethod, begin, func(ctx context.Context) error {
			return c.stream(srv, &tracedStream{ss, ctx}, i, next) //nolint:contextcheck // it is the stream's
		})
	})
	healthv1.RegisterHealthServer(l, health)
	return l, nil
}

// serve runs a call between the events that a transport would tell the handler
// of. What the caller gets is what would go over the network: a status, and
// never the error behind it.
func (l *Local) serve(ctx context.Context, calls stats.Handler, method string, begin *stats.Begin, run func(context.Context) error) error {
	if !l.enter() {
		return status.Error(codes.Unavailable, "the server has stopped")
	}
	defer l.running.Done()
	begin.BeginTime = time.Now()
	ctx = calls.TagRPC(ctx, &stats.RPCTagInfo{FullMethodName: method})
	calls.HandleRPC(ctx, begin)
	err := run(ctx)
	calls.HandleRPC(ctx, &stats.End{BeginTime: begin.BeginTime, EndTime: time.Now(), Error: err})
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

// RegisterService implements grpc.ServiceRegistrar. It must not be called once
// there are calls.
func (l *Local) RegisterService(desc *grpc.ServiceDesc, impl any) {
	l.channel.RegisterService(desc, impl)
}

// Invoke implements grpc.ClientConnInterface.
func (l *Local) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return l.channel.Invoke(l.outgoing(ctx), method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (l *Local) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return l.channel.NewStream(l.outgoing(ctx), desc, method, opts...)
}

// outgoing puts the caller's trace into the call's metadata. There is no span of
// a client: it would be as long as the server's.
func (l *Local) outgoing(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = metadata.MD{}
	}
	l.propagator.Inject(ctx, carrier(md))
	return metadata.NewOutgoingContext(ctx, md)
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

// tracedStream is a stream with the context of its span.
type tracedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream's context is a method of the stream
}

// Context implements grpc.ServerStream.
func (s *tracedStream) Context() context.Context { return s.ctx }

// carrier writes a trace into metadata.
type carrier metadata.MD

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}
