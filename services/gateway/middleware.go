package gateway

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rs/cors"
	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
	"github.com/livinguniverse/stoker/services/gateway/internal/poll"
)

// assemble puts the parts around the routes, innermost first: polls are judged
// last before the route, recovery and the trace see everything.
func (g *Gateway) assemble() http.Handler {
	h := g.etags(g.mux)
	h = g.polls(h)
	h = g.forget(h)
	h = g.bodies(h)
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
	return g.entered(g.traced(h))
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

// recorded returns w where it is a recorder, and else one over it.
func recorded(w http.ResponseWriter) *recorder {
	if rec, ok := w.(*recorder); ok {
		return rec
	}
	return &recorder{ResponseWriter: w}
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// always are the headers that every answer has, until a handler sets its own.
var always = http.Header{
	"X-Content-Type-Options":  {"nosniff"},
	"Referrer-Policy":         {"no-referrer"},
	"Content-Security-Policy": {"default-src 'self'; frame-ancestors 'none'"},
	"Cache-Control":           {"no-store"},
}

// guard recovers from panics, logs each request, and sets the headers that
// every answer has.
func (g *Gateway) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		maps.Copy(w.Header(), always)
		// A client that takes nothing is dropped. The deadline is the connection's
		// and outlives a request, so that every answer needs its own; where the
		// writer has none (in tests) there is nothing to drop.
		_ = http.NewResponseController(w).SetWriteDeadline(begin.Add(callTimeout + 10*time.Second))
		rec := recorded(w)
		defer g.finish(rec, r, begin)
		if given := r.Header.Values("Authorization"); len(given) > 1 || len(given) == 1 && !printable(given[0]) {
			httperr.WriteStatus(rec, http.StatusBadRequest, codes.InvalidArgument, rpc.ReasonInvalid, "Authorization: want one value, in printable ASCII")
			return
		}
		if what := notUTF8(r.URL); what != "" {
			httperr.Write(rec, rpc.Invalid(rpc.Violation{Field: what, Want: "text in UTF-8"}))
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// notUTF8 names a part of a URL that is no text, "" where there is none: it can
// be no part of a message.
func notUTF8(u *url.URL) string {
	if !utf8.ValidString(u.Path) {
		return "path"
	}
	if !strings.Contains(u.RawQuery, "%") && utf8.ValidString(u.RawQuery) {
		return ""
	}
	for name, values := range u.Query() {
		if !utf8.ValidString(name) {
			return "a parameter's name"
		}
		if !utf8.ValidString(strings.Join(values, "")) {
			return rpc.Shorten(name)
		}
	}
	return ""
}

// finish is deferred: it answers for a handler that panicked, and logs.
func (g *Gateway) finish(rec *recorder, r *http.Request, begin time.Time) {
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
	if !g.tel.Log.Enabled(r.Context(), level) {
		return
	}
	g.tel.Log.LogAttrs(r.Context(), level, "request", slog.String("method", rpc.Shorten(r.Method)), slog.String("route", g.table.Template(r.Method, r.URL.Path)),
		slog.Int("status", rec.status), slog.Duration("duration", time.Since(begin)), slog.String("client", g.client(r)))
}

// printable says whether a value can be metadata of a call.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// forgotten are headers in their canonical form, as net/http reads them.
var forgotten = []string{"X-Forwarded-For", "X-Forwarded-Host", "Grpc-Timeout"}

// forget drops headers that the REST mux would make metadata or deadlines of
// and that anybody can write: who called is known by now.
func (g *Gateway) forget(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requestOf(r.Context()).client = g.client(r)
		if slices.ContainsFunc(forgotten, func(name string) bool { return r.Header[name] != nil }) {
			r.Header = r.Header.Clone()
			for _, name := range forgotten {
				delete(r.Header, name)
			}
		}
		next.ServeHTTP(w, r)
	})
}

// turn is a client's turn to poll a session, taken for one request.
type turn struct {
	limiter         *poll.Limiter
	client, session string
}

func (t *turn) giveBack() { t.limiter.GiveBack(t.client, t.session) }

// waiting serves a request that may wait for long: not too many of a client, and
// until the gateway stops.
func (g *Gateway) waiting(w http.ResponseWriter, r *http.Request, serve func(r *http.Request)) {
	leave := g.waiters.Enter(g.client(r))
	if leave == nil {
		poll.RefuseWaiter(w)
		return
	}
	defer leave()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(g.stopping, func() { cancel(httperr.ErrStopping) })() //nolint:contextcheck // the gateway's end, not the call's
	serve(r.WithContext(ctx))
}

// polls decides about requests for events before the store is asked.
func (g *Gateway) polls(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := poll.Session(r)
		if id == "" {
			next.ServeHTTP(w, r)
			return
		}
		if poll.Waits(r) {
			g.waiting(w, r, func(r *http.Request) { next.ServeHTTP(w, r) })
			return
		}
		client := g.client(r)
		if after := g.limiter.Take(client, id); after > 0 {
			poll.Refuse(w, after)
			return
		}
		t := &turn{g.limiter, client, id}
		requestOf(r.Context()).turn = t
		rec := recorded(w)
		next.ServeHTTP(rec, r)
		if rec.status >= http.StatusInternalServerError {
			t.giveBack() // the store failed, not the caller
		}
	})
}
