package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway"
)

// waitLater is an answer of the store with nothing more to read.
func waitLater(context.Context, string, proto.Message) (proto.Message, error) {
	return &sessionv1.ListEventsResponse{PollAfter: durationpb.New(time.Second)}, nil
}

func TestPollTooSoonNeverReachesTheStore(t *testing.T) {
	b := &backend{Answer: waitLater}
	g := start(t, b, nil)
	w := do(t, g, "GET /v1/sessions/s1/events", "")
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"5s"`) {
		t.Fatalf("the first poll: got %d %s, want 200 and the interval of this gateway as pollAfter", w.Code, w.Body)
	}
	for _, query := range []string{"", "?wait=0.9s", "?wait=0s&after=1-1", "?wait=soon", "?wait=-5s", "?wait=31s", "?wait=20s&wait.seconds=0", "?wait=20s&wait=0s"} {
		line := "GET /v1/sessions/%731/events" + query // spelling the id differently makes it no other session
		w := do(t, g, line, "")
		f := failed(t, w)
		if w.Code != http.StatusTooManyRequests || f.reason() != "POLL_TOO_SOON" || w.Header().Get("Retry-After") != "5" {
			t.Errorf("%s: got %d, Retry-After %q: %s", line, w.Code, w.Header().Get("Retry-After"), w.Body)
		}
	}
	if n := len(b.Calls()); n != 1 {
		t.Errorf("the store was asked %d times, want once", n)
	}
	for _, line := range []string{
		"GET /v1/sessions/s2/events", "GET /v1/sessions/s1/events?wait=20s", "GET /v1/sessions/s1/events?wait=20s", "GET /v1/sessions/s1", "GET /v1/sessions/s1/ttl",
	} {
		if w := do(t, g, line, ""); w.Code != http.StatusOK {
			t.Errorf("%s is another matter: got %d", line, w.Code)
		}
	}
}

func TestOfManyPollsAtOnceOneIsServed(t *testing.T) {
	b := &backend{Answer: waitLater}
	g := start(t, b, nil)
	var served, refused atomic.Int32
	var all sync.WaitGroup
	begin := make(chan struct{})
	for range 50 {
		all.Go(func() {
			<-begin
			switch w := do(t, g, "GET /v1/sessions/s1/events", ""); w.Code {
			case http.StatusOK:
				served.Add(1)
			case http.StatusTooManyRequests:
				refused.Add(1)
			}
		})
	}
	close(begin)
	all.Wait()
	if served.Load() != 1 || refused.Load() != 49 || len(b.Calls()) != 1 {
		t.Errorf("got %d served, %d refused, want 1 and 49", served.Load(), refused.Load())
	}
}

func TestTurnComesBack(t *testing.T) {
	for name, tt := range map[string]struct {
		answer proto.Message
		err    error
		again  int
	}{
		"more to read":  {&sessionv1.ListEventsResponse{}, nil, 200},
		"nothing more":  {&sessionv1.ListEventsResponse{PollAfter: durationpb.New(time.Second)}, nil, 429},
		"store away":    {nil, rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "away", nil, time.Second), 200},
		"no session":    {nil, rpc.Error(codes.NotFound, rpc.ReasonSessionNotFound, "none", nil, 0), 429},
		"wrong request": {nil, status.Error(codes.InvalidArgument, "no"), 429},
	} {
		b := &backend{Answer: func(context.Context, string, proto.Message) (proto.Message, error) { return tt.answer, tt.err }}
		g := start(t, b, nil)
		do(t, g, "GET /v1/sessions/s1/events", "")
		b.Answer = waitLater
		if w := do(t, g, "GET /v1/sessions/s1/events", ""); w.Code != tt.again {
			t.Errorf("%s: the next poll got %d, want %d", name, w.Code, tt.again)
		}
	}
}

func TestWhoIsOneClient(t *testing.T) {
	poll := func(g *gateway.Gateway, peer string, forwarded ...string) int {
		r := request(t, "GET /v1/sessions/s1/events", "")
		r.RemoteAddr = peer
		for _, f := range forwarded {
			r.Header.Add("X-Forwarded-For", f)
		}
		w := httptest.NewRecorder()
		g.Handler().ServeHTTP(w, r)
		return w.Code
	}
	type try struct {
		peer      string
		forwarded []string
		want      int
	}
	for name, tt := range map[string]struct {
		proxies []string
		tries   []try
	}{
		"no proxy: the header is anybody's": {nil, []try{
			{"192.0.2.1:1000", nil, 200},
			{"192.0.2.1:1001", []string{"198.51.100.7"}, 429},
			{"192.0.2.2:1000", []string{"192.0.2.1"}, 200},
		}},
		"behind a proxy: the last address that is no proxy": {[]string{"10.0.0.0/8"}, []try{
			{"10.0.0.1:1", []string{"198.51.100.7"}, 200},
			{"10.0.0.2:1", []string{"1.2.3.4, 198.51.100.7"}, 429},
			{"10.0.0.2:1", []string{"9.9.9.9", "198.51.100.7, 10.0.0.9"}, 429},
			{"10.0.0.1:1", []string{"198.51.100.8"}, 200},
			// An untrusted peer that claims to be somebody else is itself.
			{"203.0.113.5:1", []string{"198.51.100.9"}, 200},
			{"203.0.113.5:2", []string{"198.51.100.10"}, 429},
			{"203.0.113.5:3", []string{"198.51.100.10, 10.0.0.1"}, 429},
		}},
	} {
		b := &backend{Answer: waitLater}
		g := start(t, b, func(c *gateway.Config) { c.TrustedProxies = tt.proxies })
		for i, try := range tt.tries {
			if got := poll(g, try.peer, try.forwarded...); got != try.want {
				t.Errorf("%s: %d: %v: got %d", name, i, try, got)
			}
		}
	}
}

func TestLongPollsOfOneClientAreBounded(t *testing.T) {
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	b := &backend{Answer: func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return waitLater(ctx, "", nil)
	}}
	g := start(t, b, func(c *gateway.Config) { c.MaxWaiters = 2 })
	var all sync.WaitGroup
	for i := range 2 {
		all.Go(func() {
			if w := do(t, g, fmt.Sprintf("GET /v1/sessions/s%d/events?wait=20s", i), ""); w.Code != http.StatusOK {
				t.Errorf("a poll within the bound: got %d", w.Code)
			}
		})
		<-arrived
	}
	for _, line := range []string{"GET /v1/sessions/s1/events?wait=20s", "GET /v1/sessions/s1/events:watch"} {
		w := do(t, g, line, "")
		if f := failed(t, w); w.Code != http.StatusTooManyRequests || f.reason() != "TOO_MANY_WAITERS" || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s beyond the bound: got %d %s", line, w.Code, w.Body)
		}
	}
	close(release)
	all.Wait()
	if w := do(t, g, "GET /v1/sessions/s1/events?wait=20s", ""); w.Code != http.StatusOK {
		t.Errorf("after the others left: got %d", w.Code)
	}
}

func TestCallerThatLeavesALongPollFreesTheStore(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	b := &backend{Answer: func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		close(arrived)
		<-ctx.Done()
		close(left)
		return nil, ctx.Err()
	}}
	g := start(t, b, func(c *gateway.Config) { c.MaxWaiters = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.Handler().ServeHTTP(httptest.NewRecorder(), request(t, "GET /v1/sessions/s1/events?wait=20s", "").WithContext(ctx))
	}()
	<-arrived
	cancel()
	<-left
	<-ended
	b.Answer = waitLater
	if w := do(t, g, "GET /v1/sessions/s1/events?wait=20s", ""); w.Code != http.StatusOK {
		t.Errorf("the place of a caller that left: got %d", w.Code)
	}
}
