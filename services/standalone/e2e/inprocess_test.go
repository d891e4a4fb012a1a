//go:build e2e

package e2e

import (
	"context"
	"sync"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/sessionstore"
)

// openStore runs a session store in this process, with these flags, and returns
// a connection to it.
func openStore(t *testing.T, change func(*sessionstore.Config), args ...string) *grpc.ClientConn {
	t.Helper()
	var cfg sessionstore.Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(args); err != nil || cfg.Validate() != nil {
		t.Fatal(err, cfg.Validate())
	}
	if change != nil {
		change(&cfg)
	}
	tel := telemetry.Nop()
	svc, err := sessionstore.New(t.Context(), cfg, tel)
	if err != nil {
		t.Fatal(err)
	}
	authn, err := (&auth.Config{Mode: "none"}).Authenticator()
	if err != nil {
		t.Fatal(err)
	}
	srv, _, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: sessionstore.ErrorMapper, BeforeAnswer: svc.BeforeAnswer})
	if err != nil {
		t.Fatal(err)
	}
	svc.Register(srv)
	pipe := rpc.NewPipe()
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() { _ = srv.Serve(pipe.Listener()) })
	running.Go(func() { _ = svc.Run(ctx, health.NewServer()) })
	conn, err := rpc.Dial(rpc.PipeTarget, tel, pipe.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		svc.Drain()
		srv.Stop()
		running.Wait()
		if err := svc.Close(); err != nil {
			t.Log(err)
		}
	})
	return conn
}
