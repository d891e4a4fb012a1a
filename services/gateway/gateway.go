// Package gateway is Stoker for browsers: REST, polls and server-sent events
// in front of the gRPC services.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/realclientip/realclientip-go"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/lifecycle"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway/console"
	activitygw "github.com/livinguniverse/stoker/services/gateway/internal/gen/stoker/activity/v1"
	sessiongw "github.com/livinguniverse/stoker/services/gateway/internal/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
	"github.com/livinguniverse/stoker/services/gateway/internal/openapi"
	"github.com/livinguniverse/stoker/services/gateway/internal/poll"
	"github.com/livinguniverse/stoker/services/gateway/internal/routes"
	"github.com/livinguniverse/stoker/services/gateway/internal/sse"
)

// heartbeat is the longest silence of a stream of events.
const heartbeat = 15 * time.Second

// Gateway is the assembled HTTP surface.
type Gateway struct {
	cfg      Config
	tel      *telemetry.Telemetry
	health   healthv1.HealthClient
	mux      *runtime.ServeMux
	sse      *sse.Handler
	limiter  *poll.Limiter
	waiters  *poll.Waiters
	clientIP realclientip.Strategy
	table    *routes.Table
	handler  http.Handler
	// stopping ends when the gateway is about to stop: nobody waits any longer.
	stopping context.Context //nolint:containedctx // it is the gateway's, not a call's
	stop     context.CancelFunc
}

// marshal is how every message is spelled: fields that have a default are
// shown (extensionCount 0), messages that are absent are not.
var marshal = protojson.MarshalOptions{EmitDefaultValues: true}

// New assembles the gateway over connections to the session store and the
// activity service.
func New(ctx context.Context, cfg Config, tel *telemetry.Telemetry, store, activity grpc.ClientConnInterface) (*Gateway, error) {
	limiter, err := poll.New(cfg.PollInterval, time.Now)
	if err != nil {
		return nil, err
	}
	stopping, stop := context.WithCancel(context.WithoutCancel(ctx))
	g := &Gateway{
		cfg: cfg, tel: tel, limiter: limiter, waiters: poll.NewWaiters(cfg.MaxWaiters), stopping: stopping, stop: stop,
		health: healthv1.NewHealthClient(store),
		sse:    &sse.Handler{Watch: watching(store), Marshal: marshal, Heartbeat: heartbeat},
	}
	if g.table, err = routes.New(ownPaths, sessionv1.File_stoker_session_v1_storage_service_proto,
		sessionv1.File_stoker_session_v1_admin_service_proto, activityv1.File_stoker_activity_v1_activity_service_proto); err != nil {
		return nil, err
	}
	if g.clientIP, err = clientIP(cfg.TrustedProxies); err != nil {
		return nil, err
	}
	if err := g.routes(ctx, store, activity); err != nil {
		return nil, err
	}
	g.handler = g.assemble()
	return g, nil
}

// watching is how events are watched: in the same process without a goroutine for
// the server's end.
func watching(store grpc.ClientConnInterface) sse.Watch {
	if local, ok := store.(*rpc.Local); ok {
		return func(ctx context.Context, req *sessionv1.WatchEventsRequest, each func(*sessionv1.WatchEventsResponse) error) error {
			return local.Stream(ctx, sessionv1.StorageService_WatchEvents_FullMethodName, req, func(answer any) error {
				m, _ := answer.(*sessionv1.WatchEventsResponse)
				return each(m)
			})
		}
	}
	return sse.Receive(sessionv1.NewStorageServiceClient(store))
}

// clientIP says who calls: the peer, or, behind trusted proxies, the last
// address in X-Forwarded-For that is not one of them. What a client writes
// there itself stands before that and is not believed.
func clientIP(proxies []string) (realclientip.Strategy, error) {
	if len(proxies) == 0 {
		return realclientip.RemoteAddrStrategy{}, nil
	}
	ranges, err := realclientip.AddressesAndRangesToIPNets(proxies...)
	if err != nil {
		return nil, err
	}
	forwarded, err := realclientip.NewRightmostTrustedRangeStrategy("X-Forwarded-For", ranges)
	if err != nil {
		return nil, err
	}
	return trustedOnly{ranges: ranges, forwarded: forwarded}, nil
}

// trustedOnly believes the header only when the peer itself is a trusted proxy.
type trustedOnly struct {
	ranges    []net.IPNet
	forwarded realclientip.Strategy
}

// ClientIP implements realclientip.Strategy.
func (s trustedOnly) ClientIP(h http.Header, remoteAddr string) string {
	peer := realclientip.RemoteAddrStrategy{}.ClientIP(h, remoteAddr)
	ip := net.ParseIP(peer)
	for _, r := range s.ranges {
		if ip != nil && r.Contains(ip) {
			if from := s.forwarded.ClientIP(h, remoteAddr); from != "" {
				return from
			}
		}
	}
	return peer
}

// ownPaths are the routes that are no RPC's.
var ownPaths = []string{"/openapi.json", "/healthz", "/readyz", "/metrics", "/", "/style.css"}

func nothing(string) (string, bool) { return "", false }

// unrouted answers a request that no route takes; for a known path it names
// the methods that there are.
func (g *Gateway) unrouted(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	if httpStatus == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", strings.Join(g.table.Methods(r.URL.Path), ", "))
	}
	httperr.Routing(ctx, mux, m, w, r, httpStatus)
}

func (g *Gateway) routes(ctx context.Context, store, activity grpc.ClientConnInterface) error {
	g.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions: marshal, UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
		}),
		runtime.WithErrorHandler(refused),
		runtime.WithRoutingErrorHandler(g.unrouted),
		// Callers cannot inject metadata: no header becomes any. The mux passes
		// Authorization on by itself; naming it here would send it twice.
		runtime.WithIncomingHeaderMatcher(nothing),
		runtime.WithOutgoingTrailerMatcher(nothing),
		runtime.WithOutgoingHeaderMatcher(httperr.Passed),
		runtime.WithForwardResponseOption(g.decorate),
		runtime.WithDisablePathLengthFallback(),
	)
	doc, err := openapi.Handler(g.cfg.Telemetry.Version)
	if err != nil {
		return err
	}
	admin := rpc.NewAdminHandler(g.tel, g.Ready)
	plain := func(h http.Handler) runtime.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request, _ map[string]string) { h.ServeHTTP(w, r) }
	}
	// A route registered later is tried earlier, and each that is tried costs a
	// little: what is asked for most comes last. It also wins: the stream of
	// server-sent events replaces the generated one.
	return errors.Join(
		g.mux.HandlePath(http.MethodGet, "/openapi.json", plain(doc)),
		g.mux.HandlePath(http.MethodGet, "/", plain(console.Handler())),
		g.mux.HandlePath(http.MethodGet, "/style.css", plain(console.Style())),
		activitygw.RegisterActivityServiceHandlerClient(ctx, g.mux, activityv1.NewActivityServiceClient(activity)),
		sessiongw.RegisterAdminServiceHandlerClient(ctx, g.mux, sessionv1.NewAdminServiceClient(store)),
		sessiongw.RegisterStorageServiceHandlerClient(ctx, g.mux, sessionv1.NewStorageServiceClient(store)),
		g.mux.HandlePath(http.MethodGet, "/healthz", plain(admin)),
		g.mux.HandlePath(http.MethodGet, "/readyz", plain(admin)),
		g.mux.HandlePath(http.MethodGet, "/metrics", plain(admin)),
		g.mux.HandlePath(http.MethodGet, "/v1/sessions/{id}/events:watch", g.watch),
	)
}

// refused answers an error of a call.
func refused(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	httperr.Handle(ctx, mux, m, w, r, httperr.Cut(ctx, err))
}

// decorate adds to answers what only the gateway knows.
func (g *Gateway) decorate(ctx context.Context, w http.ResponseWriter, m proto.Message) error {
	switch m := m.(type) {
	case *sessionv1.Session:
		w.Header().Set("ETag", strconv.Quote(strconv.FormatInt(m.GetRevision(), 10)))
	case *sessionv1.ListEventsResponse:
		if m.GetPollAfter().AsDuration() > 0 {
			m.PollAfter = durationpb.New(g.cfg.PollInterval)
		} else if t := requestOf(ctx).turn; t != nil {
			t.giveBack()
		}
	}
	return nil
}

// watch serves a session's events as server-sent events.
func (g *Gateway) watch(w http.ResponseWriter, r *http.Request, params map[string]string) {
	g.waiting(w, r, func(r *http.Request) {
		ctx := r.Context()
		if a := r.Header.Get("Authorization"); a != "" {
			ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", a))
		}
		g.sse.Serve(ctx, w, r, params["id"])
	})
}

// client is who calls, for limits and the log.
func (g *Gateway) client(r *http.Request) string {
	if known := requestOf(r.Context()).client; known != "" {
		return known
	}
	return g.clientIP.ClientIP(r.Header, r.RemoteAddr)
}

// Handler is the whole surface.
func (g *Gateway) Handler() http.Handler { return g.handler }

// Ready returns why the gateway cannot do its work, nil when it can.
func (g *Gateway) Ready(ctx context.Context) error {
	resp, err := g.health.Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return errors.New("the session store does not serve")
	}
	return nil
}

// Serve serves a listener until ctx ends, then ends streams and waits for
// running requests within the grace.
func (g *Gateway) Serve(ctx context.Context, lis net.Listener) error {
	srv := &http.Server{
		Handler: g.handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(g.tel.Log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	g.stop()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.Grace)
	defer cancel()
	err := srv.Shutdown(closing)
	if err != nil {
		err = errors.Join(err, srv.Close())
	}
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Run is the whole process: it serves until ctx ends.
func Run(ctx context.Context, cfg Config, tel *telemetry.Telemetry) error {
	defer lifecycle.KeepHeapRoom(lifecycle.HeapRoom)()
	store, err := rpc.Dial(cfg.StoreAddr, tel)
	if err != nil {
		return err
	}
	activity, err := rpc.Dial(cfg.ActivityAddr, tel)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	g, err := New(ctx, cfg, tel, store, activity)
	if err != nil {
		return errors.Join(err, store.Close(), activity.Close())
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.HTTPAddr)
	if err != nil {
		return errors.Join(err, store.Close(), activity.Close())
	}
	group := lifecycle.NewGroup(tel.Log, cfg.Grace+5*time.Second)
	group.OnClose("connections", func(context.Context) error { return errors.Join(store.Close(), activity.Close()) })
	group.Go("http", func(ctx context.Context) error { return g.Serve(ctx, lis) })
	tel.Log.InfoContext(ctx, "gateway serves", slog.String("http", lis.Addr().String()))
	return group.Run(ctx)
}
