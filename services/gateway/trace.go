package gateway

import (
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

// traced traces requests under the template of their route. The path and the
// query hold session ids and cursors, which are not for traces: the
// instrumentation never sees them (see entered).
func (g *Gateway) traced(next http.Handler) http.Handler {
	return otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL = requestOf(r.Context()).url
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
}
