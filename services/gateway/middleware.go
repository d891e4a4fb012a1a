package gateway

import (
	"context"
	"errors"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/rs/cors"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
	"github.com/livinguniverse/stoker/services/gateway/internal/poll"
)

// callTimeout bounds a request that is no stream: the longest poll and some.
const callTimeout = 35 * time.Second

// assemble puts the parts around the routes, innermost first: polls are judged
// last before the route, recovery and the trace see everything.
func (g *Gateway) assemble() (http.Handler, error) {
	var h http.Handler = g.mux
	h = g.etags(h)
	h = g.polls(h)
	h = g.bodies(h)
	h = g.deadlines(h)
	if len(g.cfg.CORSOrigins) > 0 {
		h = cors.New(cors.Options{
			AllowedOrigins: g.cfg.CORSOrigins,
			AllowedMethods: []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
			AllowedHeaders: []string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "Last-Event-ID", "Traceparent"},
			ExposedHeaders: []string{"ETag", "Retry-After", "Stoker-Served-By", "Stoker-Stale-For", "Stoker-Durability"},
			MaxAge:         600,
		}).Handler(h)
	}
	h = g.guard(h)
	return otelhttp.NewHandler(h, "gateway",
		otelhttp.WithTracerProvider(g.tel.Tracer), otelhttp.WithMeterProvider(g.tel.Meter), otelhttp.WithPropagators(g.tel.Propagator),
		otelhttp.WithFilter(func(r *http.Request) bool {
			return r.URL.Path != "/healthz" && r.URL.Path != "/readyz" && r.URL.Path != "/metrics"
		}),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + template(r.URL.Path) }),
	), nil
}

// template is a path without what varies in it, for span names: few names, and
// no session ids.
func template(path string) string {
	parts := strings.Split(path, "/")
	for i := 1; i < len(parts); i++ {
		switch parts[i-1] {
		case "sessions":
			parts[i] = keepVerb(parts[i], "{id}")
		case "users":
			parts[i] = keepVerb(parts[i], "{user}")
		case "policies":
			parts[i] = "{project}"
		case "breakers":
			parts[i] = keepVerb(parts[i], "{name}")
		case "deadLetters":
			parts[i] = keepVerb(parts[i], "{id}")
		}
	}
	if len(parts) > 6 {
		return "/..."
	}
	return strings.Join(parts, "/")
}

func keepVerb(part, name string) string {
	_, verb, ok := strings.Cut(part, ":")
	if ok {
		return name + ":" + rpc.Shorten(verb)
	}
	return name
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// guard recovers from panics, logs each request, and sets the headers that
// every answer has.
func (g *Gateway) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p) //nolint:forbidigo // net/http's own way to cut a connection
				}
				g.tel.Log.ErrorContext(r.Context(), "panic in a handler", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				if rec.status == 0 {
					httperr.Write(rec, errors.New("panic"))
				}
			}
			level := slog.LevelDebug
			if rec.status >= http.StatusInternalServerError {
				level = slog.LevelWarn
			}
			g.tel.Log.LogAttrs(r.Context(), level, "request", slog.String("method", r.Method), slog.String("route", template(r.URL.Path)),
				slog.Int("status", rec.status), slog.Duration("duration", time.Since(begin)), slog.String("client", g.client(r)))
		}()
		if len(r.Header.Values("Authorization")) > 1 {
			httperr.WriteStatus(rec, http.StatusBadRequest, codes.InvalidArgument, "Authorization: more than one")
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// deadlines bounds every request but streams.
func (g *Gateway) deadlines(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/events:watch") {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		// A client that takes nothing is dropped; where the writer has no
		// deadline (in tests) there is nothing to drop.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(callTimeout + 10*time.Second))
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// bodies checks the size and the media type of what comes in.
func (g *Gateway) bodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		if r.ContentLength > g.cfg.MaxBody {
			g.tooLarge(w)
			return
		}
		if kind := r.Header.Get("Content-Type"); kind != "" {
			media, _, err := mime.ParseMediaType(kind)
			if err != nil || (media != "application/json" && !strings.HasSuffix(media, "+json")) {
				httperr.WriteStatus(w, http.StatusUnsupportedMediaType, codes.InvalidArgument, "Content-Type: got \""+rpc.Shorten(kind)+"\", want application/json")
				return
			}
		}
		body := &limitedBody{ReadCloser: http.MaxBytesReader(w, r.Body, g.cfg.MaxBody)}
		r.Body = body
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, body: body, refuse: g.tooLarge}, r)
	})
}

func (g *Gateway) tooLarge(w http.ResponseWriter) {
	httperr.WriteStatus(w, http.StatusRequestEntityTooLarge, codes.InvalidArgument, "body: larger than the limit of --max-body")
}

// etags turns an answer that the caller has already into 304.
func (g *Gateway) etags(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if have := r.Header.Get("If-None-Match"); have != "" && r.Method == http.MethodGet {
			w = &conditional{ResponseWriter: w, have: have}
		}
		next.ServeHTTP(w, r)
	})
}

// conditional drops the body of an answer whose ETag the caller has.
type conditional struct {
	http.ResponseWriter
	have  string
	begun bool
	drop  bool
}

func (c *conditional) WriteHeader(status int) {
	c.begun = true
	if etag := c.Header().Get("ETag"); status == http.StatusOK && etag != "" && matches(c.have, etag) {
		c.drop = true
		c.Header().Del("Content-Type")
		c.Header().Del("Content-Length")
		status = http.StatusNotModified
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *conditional) Write(p []byte) (int, error) {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.drop {
		return len(p), nil
	}
	return c.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (c *conditional) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// matches compares weakly, as RFC 9110, section 13.1.2, says.
func matches(have, etag string) bool {
	for _, h := range strings.Split(have, ",") {
		if h = strings.TrimSpace(h); h == "*" || strings.TrimPrefix(h, "W/") == etag {
			return true
		}
	}
	return false
}

// turn is a client's turn to poll a session, taken for one request.
type turn struct {
	limiter         *poll.Limiter
	client, session string
}

func (t *turn) giveBack() { t.limiter.GiveBack(t.client, t.session) }

type turnKey struct{}

func turnOf(ctx context.Context) *turn {
	t, _ := ctx.Value(turnKey{}).(*turn)
	return t
}

// polls decides about requests for events before the store is asked.
func (g *Gateway) polls(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := poll.Session(r)
		if id == "" {
			next.ServeHTTP(w, r)
			return
		}
		client := g.client(r)
		if poll.Waits(r) {
			leave := g.waiters.Enter(client)
			if leave == nil {
				poll.RefuseWaiter(w)
				return
			}
			defer leave()
			next.ServeHTTP(w, r)
			return
		}
		if after := g.limiter.Take(client, id); after > 0 {
			poll.Refuse(w, after)
			return
		}
		t := &turn{g.limiter, client, id}
		rec := &recorder{ResponseWriter: w}
		next.ServeHTTP(rec, r.WithContext(context.WithValue(r.Context(), turnKey{}, t)))
		if rec.status >= http.StatusInternalServerError {
			t.giveBack() // the store failed, not the caller
		}
	})
}
