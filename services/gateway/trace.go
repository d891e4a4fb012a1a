package gateway

import (
	"context"
	"net/http"
	"net/url"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

type urlKey struct{}

// traced traces requests under the template of their route. The path and the
// query hold session ids and cursors, which are not for traces: the
// instrumentation never sees them.
func (g *Gateway) traced(next http.Handler) http.Handler {
	inner := otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, ok := r.Context().Value(urlKey{}).(*url.URL); ok {
			r.URL = u
		}
		next.ServeHTTP(w, r)
	}), "gateway",
		otelhttp.WithTracerProvider(g.tel.Tracer), otelhttp.WithMeterProvider(g.tel.Meter), otelhttp.WithPropagators(g.tel.Propagator),
		otelhttp.WithFilter(func(r *http.Request) bool {
			return r.URL.Path != "/healthz" && r.URL.Path != "/readyz" && r.URL.Path != "/metrics"
		}),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
			if r.URL.Path == "unknown" {
				return "HTTP" // whatever callers make up must not become a name
			}
			return r.Method + " " + r.URL.Path
		}),
	)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		masked := r.WithContext(context.WithValue(r.Context(), urlKey{}, r.URL))
		masked.URL = &url.URL{Path: g.table.Template(r.Method, r.URL.Path)}
		inner.ServeHTTP(w, masked)
	})
}
