package activity

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/livinguniverse/stoker/pkg/lifecycle"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
)

// callGrace is how long running calls may take at the end.
const callGrace = 5 * time.Second

// Serve runs the service as a process of its own until ctx ends: ActivityService
// on the gRPC address, health and metrics on the admin address, logs to logTo.
func Serve(ctx context.Context, cfg Config, version string, logTo io.Writer) (err error) {
	defer lifecycle.KeepHeapRoom(lifecycle.HeapRoom)()
	cfg.Telemetry.Version = version
	tel, err := telemetry.Setup(ctx, cfg.Telemetry, logTo)
	if err != nil {
		return err
	}
	g := lifecycle.NewGroup(tel.Log, cfg.ShutdownGrace+callGrace+5*time.Second)
	g.OnClose("telemetry", tel.Shutdown)
	conn, err := rpc.Dial(cfg.StoreAddr, tel)
	if err != nil {
		return fmt.Errorf("--store-addr: %w", err)
	}
	g.OnClose("store connection", func(context.Context) error { return conn.Close() })
	svc, err := New(cfg, tel, conn)
	if err != nil {
		return err
	}
	g.Go("activity", svc.Run)
	g.OnClose("activity", svc.Close)

	authenticator, err := cfg.Auth.Authenticator()
	if err != nil {
		return err
	}
	srv, health, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authenticator, ErrorMapper: func(error) error { return nil }})
	if err != nil {
		return err
	}
	svc.Register(srv)
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", cfg.GRPCAddr)
	if err != nil {
		return fmt.Errorf("--grpc-addr: %w", err)
	}
	tel.Log.InfoContext(ctx, "serving", slog.String("grpc", lis.Addr().String()), slog.String("admin", cfg.AdminAddr), slog.String("store", cfg.StoreAddr))
	g.Go("grpc", func(ctx context.Context) error { return rpc.Serve(ctx, srv, lis, callGrace) })
	g.OnClose("grpc", func(context.Context) error { rpc.Stop(srv, callGrace); return nil })
	if cfg.AdminAddr != "" {
		admin := rpc.NewAdminHandler(tel, svc.Ready)
		g.Go("admin", func(ctx context.Context) error { return rpc.ServeHTTP(ctx, cfg.AdminAddr, admin, callGrace) })
	}
	g.OnClose("health", func(context.Context) error {
		health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
		return nil
	})
	return g.Run(ctx)
}
