// Package sessionstore is the session store: gRPC in front of a storage
// backend, and the sweeper that lets sessions go.
package sessionstore

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/livinguniverse/stoker/pkg/lifecycle"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Service is an open session store. It serves nothing by itself: Register it
// with a server, and Run its sweeper.
type Service struct {
	cfg     Config
	tel     *telemetry.Telemetry
	store   *backend
	marks   *server.Marks
	metrics *server.Metrics
	rpc     *server.Server
	admin   *server.Admin
	stop    context.CancelFunc
}

// ErrorMapper turns the store's errors into statuses, for rpc.NewServer.
func ErrorMapper(err error) error { return server.ToStatus(err) }

// Plain says which requests need no validation, for rpc.NewServer.
func Plain(req any) bool { return server.Plain(req) }

// New opens the backend.
func New(ctx context.Context, cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	breakers, err := newBreakers(cfg, tel) //nolint:contextcheck // breakers outlive the start, and change state in nobody's call
	if err != nil {
		return nil, err
	}
	marks := server.NewMarks()
	store, err := open(ctx, cfg, tel, breakers, marks)
	if err != nil {
		return nil, err
	}
	metrics, err := server.NewMetrics(tel.Meter, store.Store, store.limits) //nolint:contextcheck // a counter begins at 0 in nobody's call
	if store.near != nil {
		err = errors.Join(err, observeNearCache(tel.Meter, store.near))
	}
	if store.journal != nil {
		err = errors.Join(err, observeJournal(tel.Meter, store.journal, store.now))
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	stopping, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Service{cfg: cfg, tel: tel, store: store, marks: marks, metrics: metrics, stop: stop}
	s.rpc = server.New(server.Config{
		Store: store.Store, Shards: cfg.Shards, Policy: cfg.policy(), Clock: store.now, Metrics: metrics, Stopping: stopping,
		Limits:       server.Limits{EventData: cfg.EventData, SessionData: cfg.SessionData, Labels: cfg.MaxLabels},
		PollInterval: cfg.PollInterval, Heartbeat: cfg.Heartbeat,
	})
	s.admin = server.NewAdmin(store.Store, breakers, store.now())
	s.admin.OnRepair = s.logRepair
	if store.journal != nil {
		s.admin.Journal = store.journal
	}
	return s, nil
}

// Register adds the services to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	sessionv1.RegisterStorageServiceServer(r, s.rpc)
	sessionv1.RegisterAdminServiceServer(r, s.admin)
}

// BeforeAnswer marks answers that the backend did not give; for rpc.NewServer,
// without which nothing is marked.
func (s *Service) BeforeAnswer(ctx context.Context, err error) { s.marks.BeforeAnswer(ctx, err) }

// Ready returns why the store cannot do its work, nil when it can.
func (s *Service) Ready(ctx context.Context) error {
	err := s.store.Status(ctx).Err
	if s.store.works(err) {
		return nil
	}
	return err
}

// Run sweeps, counts, and keeps the health service up to date until ctx ends.
func (s *Service) Run(ctx context.Context, hs *health.Server) error {
	var counting sync.WaitGroup
	defer counting.Wait()
	counting.Go(func() { s.count(ctx) })
	return s.sweep(ctx, hs)
}

// repairBudget is how many keys of each server are compared with the indexes at
// every census.
const repairBudget = 10_000

// count takes a census now and then, for the metrics, and repairs a part of the
// indexes.
func (s *Service) count(ctx context.Context) {
	if s.cfg.Census <= 0 {
		return
	}
	tick := time.NewTicker(s.cfg.Census)
	defer tick.Stop()
	for {
		c, err := s.store.Census(ctx)
		switch {
		case err == nil:
			s.metrics.Counted(c)
		case ctx.Err() == nil:
			s.tel.Log.DebugContext(ctx, "census failed", slog.Any("error", err))
		}
		s.repairSome(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// logRepair logs and counts what a full repair did.
func (s *Service) logRepair(ctx context.Context, r storage.RepairResult, err error) {
	s.metrics.Repaired(ctx, r)
	log := s.tel.Log.With(slog.Int64("compared", r.Sessions), slog.Int64("restored", r.Restored), slog.Int64("dropped", r.Dropped), slog.Int64("skipped", r.Skipped))
	if err != nil {
		log.WarnContext(ctx, "index repair failed", slog.Any("error", err))
		return
	}
	log.InfoContext(ctx, "index repair done")
}

// repairSome repairs a bounded part of the indexes: what is lost is found without
// an operator, if later.
func (s *Service) repairSome(ctx context.Context) {
	r, err := s.store.Repair(ctx, storage.RepairQuery{Budget: repairBudget})
	s.metrics.Repaired(ctx, r)
	if r.Restored > 0 {
		s.tel.Log.WarnContext(ctx, "restored index entries", slog.Int64("sessions", r.Restored), slog.Int64("compared", r.Sessions))
	}
	if err != nil && ctx.Err() == nil {
		s.tel.Log.WarnContext(ctx, "index repair failed", slog.Any("error", err))
	}
}

func (s *Service) sweep(ctx context.Context, hs *health.Server) error {
	sweep := time.NewTicker(s.cfg.Sweep)
	defer sweep.Stop()
	failures := 0
	s.setHealth(hs, healthv1.HealthCheckResponse_SERVING) // New has reached the backend, or may do without
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sweep.C:
		}
		r, err := s.store.Sweep(ctx)
		s.metrics.Swept(ctx, r)
		serving := healthv1.HealthCheckResponse_SERVING
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			failures++
			if !s.store.works(err) {
				serving = healthv1.HealthCheckResponse_NOT_SERVING
			}
			if failures&(failures-1) == 0 { // the 1st, 2nd, 4th, 8th ... in a row
				s.tel.Log.WarnContext(ctx, "sweep failed", slog.Int("inARow", failures), slog.Any("error", err))
			}
		case failures > 0:
			s.tel.Log.InfoContext(ctx, "sweep works again", slog.Int("failed", failures))
			failures = 0
		}
		s.setHealth(hs, serving)
	}
}

// setHealth answers for the service by name, and for the process as a whole:
// without its backend it can do nothing.
func (s *Service) setHealth(hs *health.Server, st healthv1.HealthCheckResponse_ServingStatus) {
	hs.SetServingStatus("", st)
	hs.SetServingStatus(sessionv1.StorageService_ServiceDesc.ServiceName, st)
}

// Drain ends streams and waits, so that a graceful stop does not wait for
// them.
func (s *Service) Drain() { s.stop() }

// Close ends streams and closes the backend.
func (s *Service) Close() error {
	s.stop()
	return s.store.Close()
}

// Run is the whole process: it serves until ctx ends, then stops in order:
// health off, running calls, sweeper, store.
func Run(ctx context.Context, cfg Config, tel *telemetry.Telemetry) error {
	defer lifecycle.KeepHeapRoom(lifecycle.HeapRoom)()
	s, err := New(ctx, cfg, tel)
	if err != nil {
		return err
	}
	authn, err := cfg.Auth.Authenticator()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	srv, hs, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: ErrorMapper, Plain: Plain, BeforeAnswer: s.BeforeAnswer})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	s.Register(srv)
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.GRPCAddr)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	g := lifecycle.NewGroup(tel.Log, cfg.Grace+5*time.Second)
	g.OnClose("store", func(context.Context) error { return s.Close() })
	if cfg.AdminAddr != "" {
		g.Go("admin", func(ctx context.Context) error {
			return rpc.ServeHTTP(ctx, cfg.AdminAddr, rpc.NewAdminHandler(tel, s.Ready), time.Second)
		})
	}
	g.Go("sweeper", func(ctx context.Context) error { return s.Run(ctx, hs) })
	g.Go("grpc", func(context.Context) error { return srv.Serve(lis) })
	g.OnClose("grpc", func(context.Context) error {
		hs.Shutdown()
		s.Drain()
		rpc.Stop(srv, cfg.Grace)
		return nil
	})
	tel.Log.InfoContext(ctx, "session store serves", slog.String("grpc", lis.Addr().String()), slog.String("admin", cfg.AdminAddr), slog.String("storage", cfg.Backend()))
	return g.Run(ctx)
}
