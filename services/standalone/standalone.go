// Package standalone is the session store, the activity service and the
// gateway in one process, joined in memory.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"google.golang.org/grpc"

	"github.com/livinguniverse/stoker/pkg/lifecycle"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/activity"
	"github.com/livinguniverse/stoker/services/gateway"
	"github.com/livinguniverse/stoker/services/sessionstore"
)

// Run serves everything until ctx ends, and then stops in order: HTTP, the
// activity service (which reports what is pending), gRPC, the sweeper, the
// store. It prints where to look to out.
func Run(ctx context.Context, cfg Config, tel *telemetry.Telemetry, out io.Writer) (err error) {
	defer lifecycle.KeepHeapRoom(lifecycle.HeapRoom)()
	g := lifecycle.NewGroup(tel.Log, 3*cfg.Grace)
	var opened closers
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.close())
		}
	}()
	store, err := sessionstore.New(ctx, cfg.Store, tel)
	if err != nil {
		return err
	}
	opened.add(store.Close)
	authn, err := cfg.Auth.Authenticator()
	if err != nil {
		return err
	}
	serving := rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: sessionstore.ErrorMapper, Plain: sessionstore.Plain, BeforeAnswer: store.BeforeAnswer}
	srv, hs, err := rpc.NewServer(serving)
	if err != nil {
		return err
	}
	local, err := rpc.NewLocal(serving, hs)
	if err != nil {
		return err
	}
	act, err := activity.New(cfg.Activity, tel, local)
	if err != nil {
		return err
	}
	for _, r := range []grpc.ServiceRegistrar{srv, local} {
		store.Register(r)
		act.Register(r)
	}
	gw, err := gateway.New(ctx, cfg.Gateway, tel, local, local)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	grpcLis, err := lc.Listen(ctx, "tcp", cfg.GRPCAddr)
	if err != nil {
		return fmt.Errorf("--grpc-addr: %w", err)
	}
	opened.add(grpcLis.Close)
	httpLis, err := lc.Listen(ctx, "tcp", cfg.Gateway.HTTPAddr)
	if err != nil {
		return fmt.Errorf("--http-addr: %w", err)
	}

	g.OnClose("store", func(context.Context) error { return store.Close() })
	g.Go("sweeper", func(ctx context.Context) error { return store.Run(ctx, hs) })
	g.Go("grpc", func(context.Context) error { return srv.Serve(grpcLis) })
	g.OnClose("grpc", func(context.Context) error {
		hs.Shutdown()
		store.Drain()
		rpc.Stop(srv, cfg.Grace)
		return local.Stop(cfg.Grace)
	})
	g.Go("activity", act.Run)
	g.Go("http", func(ctx context.Context) error { return gw.Serve(ctx, httpLis) })
	if cfg.Demo {
		g.Go("demo", func(ctx context.Context) error { return demo(ctx, local, tel.Log) })
	}
	if err := banner(out, cfg, httpLis.Addr(), grpcLis.Addr()); err != nil {
		return err
	}
	tel.Log.InfoContext(ctx, "stoker serves", slog.String("http", httpLis.Addr().String()),
		slog.String("grpc", grpcLis.Addr().String()), slog.String("storage", cfg.Store.Backend()))
	return g.Run(ctx)
}

// closers undo an assembly that failed half-way.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	return errors.Join(errs...)
}

// banner says where to look, and what to try first.
func banner(out io.Writer, cfg Config, http, grpcAddr net.Addr) error {
	where := "in memory only; give --data-dir to keep sessions"
	switch {
	case cfg.Store.Journals():
		where = "on Redis, its outage journal in " + cfg.Store.DataDir
	case cfg.Store.Backend() == sessionstore.StorageRedis:
		where = "on Redis"
	case cfg.Store.DataDir != "":
		where = "durable in " + cfg.Store.DataDir
	}
	_, err := fmt.Fprintf(out, `Stoker is running, %s.

  page     http://%[2]s/
  REST     http://%[2]s/v1/sessions     described in http://%[2]s/openapi.json
  gRPC     %[3]s
  metrics  http://%[2]s/metrics

Try:
  curl --json '{"user":"ann","project":"acme"}' http://%[2]s/v1/sessions

`, where, http, grpcAddr)
	return err
}
