// Package rpc makes gRPC servers and connections that are alike everywhere:
// one interceptor order, one set of limits, one form of errors.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/telemetry"
)

// Limits of every server unless its configuration says otherwise.
const (
	DefaultMaxRecvBytes = 4 << 20
	DefaultMaxStreams   = 20_000
	maxHeaderBytes      = 16 << 10
	// workers are goroutines that serve one call after the other: a call on a new
	// goroutine pays for its stack to grow, a sixth of what a read costs. Calls
	// beyond them, and while they wait, get goroutines of their own.
	workers = 128
)

// ServerConfig is what a server needs.
type ServerConfig struct {
	Telemetry *telemetry.Telemetry
	Auth      auth.Authenticator
	// ErrorMapper turns a domain error into a status; it returns nil for one it
	// does not know, which is answered INTERNAL with no detail.
	ErrorMapper func(error) error
	// Plain says of a message that it satisfies its rules, where that is seen
	// without looking them up; what it does not say so of is validated, and
	// everything is where it is nil. It must never be wrong.
	Plain func(msg any) bool
	// BeforeAnswer is called at the end of each call, and of a stream also
	// before its first message, while headers may still be set; err is the
	// status that will be answered. Nothing is called where nil.
	BeforeAnswer func(ctx context.Context, err error)
	// MaxRecvBytes bounds one message; 0 for 4 MiB.
	MaxRecvBytes int
	// MaxStreams bounds the concurrent calls of one connection; 0 for 20,000.
	MaxStreams uint32
}

// NewServer returns a server with health and reflection registered. The health
// service starts as SERVING for the empty service name.
func NewServer(cfg ServerConfig) (*grpc.Server, *health.Server, error) {
	c, calls, err := cfg.assemble()
	if err != nil {
		return nil, nil, err
	}
	srv := grpc.NewServer(
		grpc.StatsHandler(calls),
		grpc.NumStreamWorkers(workers),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.UnaryInterceptor(c.unary), grpc.StreamInterceptor(c.stream),
		grpc.MaxRecvMsgSize(cfg.MaxRecvBytes),
		grpc.MaxConcurrentStreams(cfg.MaxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 4 * time.Second, PermitWithoutStream: true}),
		// A peer that vanished is noticed within 10 s, so that what it held is
		// handed on.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 6 * time.Second, Timeout: 4 * time.Second}),
	)
	hs := health.NewServer()
	healthv1.RegisterHealthServer(srv, hs)
	reflection.Register(srv)
	return srv, hs, nil
}

// assemble fills the defaults in, and makes what is around every call, however it
// comes.
func (cfg *ServerConfig) assemble() (*chain, stats.Handler, error) {
	if cfg.MaxRecvBytes == 0 {
		cfg.MaxRecvBytes = DefaultMaxRecvBytes
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = DefaultMaxStreams
	}
	validator, err := newValidator()
	if err != nil {
		return nil, nil, fmt.Errorf("validator: %w", err)
	}
	calls, err := newServerStats(cfg.Telemetry)
	if err != nil {
		return nil, nil, fmt.Errorf("telemetry of calls: %w", err)
	}
	c := &chain{
		log: cfg.Telemetry.Log, toStatus: cfg.ErrorMapper, before: cfg.BeforeAnswer, auth: cfg.Auth, plain: cfg.Plain, validator: validator,
	}
	if c.before == nil {
		c.before = func(context.Context, error) {}
	}
	if c.plain == nil {
		c.plain = func(any) bool { return false }
	}
	return c, calls, nil
}

// newValidator is one for all servers of a process: it remembers the rules of
// each message once they are compiled.
var newValidator = sync.OnceValues(func() (protovalidate.Validator, error) { return protovalidate.New() })

func otelOptions(t *telemetry.Telemetry) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.Tracer),
		otelgrpc.WithMeterProvider(t.Meter),
		otelgrpc.WithPropagators(t.Propagator),
	}
}

// Serve serves a listener until ctx ends, then waits for running calls for at
// most grace before it cuts them off.
func Serve(ctx context.Context, srv *grpc.Server, lis net.Listener, grace time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	Stop(srv, grace)
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop lets running calls finish for at most grace, then cuts them off.
func Stop(srv *grpc.Server, grace time.Duration) {
	done := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(grace):
		srv.Stop()
		<-done
	}
}
