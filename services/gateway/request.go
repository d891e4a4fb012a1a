package gateway

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// callTimeout bounds a request that is no stream: the longest poll and some.
const callTimeout = 35 * time.Second

// request is what the gateway knows of a request: one value that its context
// leads to, filled in on the way, where a context for each part of it would copy
// the request each time.
type request struct {
	url *url.URL
	// client is who calls, "" as long as that is not known.
	client string
	// turn is the client's, where it polls a session.
	turn *turn
}

type requestKey struct{}

// requestOf returns what is known of a request by its context, an empty one
// where it did not come in by entered.
func requestOf(ctx context.Context) *request {
	if known, ok := ctx.Value(requestKey{}).(*request); ok {
		return known
	}
	return &request{}
}

// entered takes every request in: it hands on one with the template of its route
// in the place of its URL, and bounds it in time, unless it is a stream.
func (g *Gateway) entered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), requestKey{}, &request{url: r.URL})
		if !strings.HasSuffix(r.URL.Path, "/events:watch") {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, callTimeout)
			defer cancel()
		}
		masked := r.WithContext(ctx)
		masked.URL = &url.URL{Path: g.table.Template(r.Method, r.URL.Path)}
		next.ServeHTTP(w, masked)
	})
}
