package bench

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// echo answers with messages of the size that Stoker's have, and does nothing
// else: what gRPC itself allows.
type echo struct {
	sessionv1.UnimplementedStorageServiceServer
	session  *sessionv1.Session
	extended *sessionv1.ExtendTTLResponse
}

const aCursor = "1795526267536-0"

func (e *echo) GetSession(context.Context, *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
	return e.session, nil
}

func (e *echo) ExtendTTL(context.Context, *sessionv1.ExtendTTLRequest) (*sessionv1.ExtendTTLResponse, error) {
	return e.extended, nil
}

func (e *echo) AppendEvents(_ context.Context, req *sessionv1.AppendEventsRequest) (*sessionv1.AppendEventsResponse, error) {
	return &sessionv1.AppendEventsResponse{Cursors: slices.Repeat([]string{aCursor}, len(req.GetEvents()))}, nil
}

// samples are the answers that an echo gives, as its arguments.
func samples(session, extended proto.Message) ([]string, error) {
	var out []string
	for _, m := range []proto.Message{session, extended} {
		raw, err := proto.Marshal(m)
		if err != nil {
			return nil, err
		}
		out = append(out, base64.StdEncoding.EncodeToString(raw))
	}
	return out, nil
}

func serveEcho(ctx context.Context, args []string, ready func(hello) error) error {
	e := &echo{session: &sessionv1.Session{}, extended: &sessionv1.ExtendTTLResponse{}}
	into := []proto.Message{e.session, e.extended}
	if len(args) != len(into) {
		return fmt.Errorf("echo: got %d samples, want %d", len(args), len(into))
	}
	for i, arg := range args {
		raw, err := base64.StdEncoding.DecodeString(arg)
		if err != nil {
			return err
		}
		if err := proto.Unmarshal(raw, into[i]); err != nil {
			return err
		}
	}
	return serveBare(ctx, e, ready)
}

// serveBare serves with a default server: no interceptor, no telemetry.
func serveBare(ctx context.Context, s sessionv1.StorageServiceServer, ready func(hello) error) error {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	sessionv1.RegisterStorageServiceServer(srv, s)
	if err := ready(hello{GRPC: lis.Addr().String()}); err != nil {
		return err
	}
	return rpc.Serve(ctx, srv, lis, 0)
}
