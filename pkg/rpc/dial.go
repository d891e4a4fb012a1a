package rpc

import (
	"context"
	"net"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"github.com/livinguniverse/stoker/pkg/telemetry"
)

// maxAnswerBytes bounds one answer: a page of a thousand sessions may be large.
const maxAnswerBytes = 64 << 20

// Dial returns a connection that is made when it is first used. Calls fail
// with UNAVAILABLE while it is down; it reconnects within 2 s.
func Dial(target string, tel *telemetry.Telemetry, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	all := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelOptions(tel)...)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes), grpc.ForceCodecV2(newCodec())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Second, Timeout: 4 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
	}, opts...)
	return grpc.NewClient(target, all...)
}

// Pipe joins a server and its clients in memory.
type Pipe struct{ lis *bufconn.Listener }

// PipeTarget is what to dial together with a Pipe's DialOption.
const PipeTarget = "passthrough:///pipe"

// NewPipe returns a pipe that is open until its listener is closed.
func NewPipe() *Pipe { return &Pipe{bufconn.Listen(1 << 20)} }

// Listener is the server's end.
func (p *Pipe) Listener() net.Listener { return p.lis }

// DialOption makes a connection use the pipe.
func (p *Pipe) DialOption() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return p.lis.DialContext(ctx)
	})
}
