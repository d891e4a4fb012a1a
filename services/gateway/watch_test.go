package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/gateway"
)

// serve serves a gateway on a real connection until stop is called.
func serve(t *testing.T, g *gateway.Gateway) (url string, stop func()) {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, lis) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serving ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return "http://" + lis.Addr().String(), stop
}

func open(t *testing.T, url string, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// part reads one part of a stream: its lines up to the empty one.
func part(t *testing.T, in *bufio.Reader) string {
	t.Helper()
	var lines []string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("the stream ended after %q: %v", lines, err)
		}
		if line == "\n" {
			return strings.Join(lines, "|")
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
}

func TestWatchStreamsAndResumes(t *testing.T) {
	b := &backend{Watch: func(req *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error {
		from := req.GetAfter()
		_ = stream.Send(&sessionv1.WatchEventsResponse{Cursor: from + "1", Event: &sessionv1.Event{Type: "input:text", Cursor: from + "1"}})
		<-stream.Context().Done()
		return stream.Context().Err()
	}}
	url, _ := serve(t, start(t, b, nil))
	for _, tt := range []struct{ query, last, after string }{{"", "", ""}, {"?after=5-", "", "5-"}, {"", "6-", "6-"}, {"?after=5-", "7-", "7-"}} {
		headers := []string{"Accept", "text/event-stream"}
		if tt.last != "" {
			headers = append(headers, "Last-Event-ID", tt.last)
		}
		resp := open(t, url+"/v1/sessions/s1/events:watch"+tt.query, headers...)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("got %d, Content-Type %q", resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		in := bufio.NewReader(resp.Body)
		if hint := part(t, in); !strings.HasPrefix(hint, "retry: ") {
			t.Errorf("the first part: got %q, want the time before a reconnection", hint)
		}
		if got, want := part(t, in), "id: "+tt.after+"1|event: input:text|data: {"; !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q...", got, want)
		}
		_ = resp.Body.Close()
		if calls := b.Calls(); len(calls) != 1 {
			t.Errorf("got %d calls", len(calls))
		}
	}
}

func TestStoppingEndsStreamsAtOnce(t *testing.T) {
	left := make(chan struct{}, 1)
	b := &backend{Watch: func(_ *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error {
		_ = stream.Send(&sessionv1.WatchEventsResponse{})
		<-stream.Context().Done()
		left <- struct{}{}
		return stream.Context().Err()
	}}
	url, stop := serve(t, start(t, b, nil))
	resp := open(t, url+"/v1/sessions/s1/events:watch")
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	part(t, in)
	begin := time.Now()
	stop()
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("stopping took %v with a stream open", d)
	}
	if _, err := io.ReadAll(in); err != nil {
		t.Errorf("the stream must end in order, got %v", err)
	}
	<-left
}

// TestStoppingAnswersWhoWaits: a long poll is no reason to stop later, and is
// told to come again.
func TestStoppingAnswersWhoWaits(t *testing.T) {
	arrived := make(chan struct{})
	b := &backend{Answer: func(ctx context.Context, _ string, _ proto.Message) (proto.Message, error) {
		close(arrived)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	url, stop := serve(t, start(t, b, nil))
	answered := make(chan string, 1)
	go func() {
		resp := open(t, url+"/v1/sessions/s1/events?wait=30s")
		defer resp.Body.Close()
		answered <- fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Retry-After"))
	}()
	<-arrived
	begin := time.Now()
	stop()
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("stopping took %v with a long poll open", d)
	}
	if got := <-answered; got != "503 1" {
		t.Errorf("got %q, want status 503 and a second to wait", got)
	}
}

func TestClientThatLeavesFreesTheStore(t *testing.T) {
	left := make(chan struct{}, 1)
	b := &backend{Watch: func(_ *sessionv1.WatchEventsRequest, stream grpc.ServerStreamingServer[sessionv1.WatchEventsResponse]) error {
		_ = stream.Send(&sessionv1.WatchEventsResponse{})
		<-stream.Context().Done()
		left <- struct{}{}
		return stream.Context().Err()
	}}
	url, _ := serve(t, start(t, b, func(c *gateway.Config) { c.MaxWaiters = 1 }))
	for range 3 {
		resp := open(t, url+"/v1/sessions/s1/events:watch")
		// The place is given back when the handler has ended, which is a moment
		// after the store's side of the stream has.
		for until := time.Now().Add(5 * time.Second); resp.StatusCode == http.StatusTooManyRequests; {
			if time.Now().After(until) {
				t.Fatal("the place of a client that left is still taken")
			}
			resp = open(t, url+"/v1/sessions/s1/events:watch")
		}
		part(t, bufio.NewReader(resp.Body))
		_ = resp.Body.Close()
		select {
		case <-left:
		case <-time.After(10 * time.Second):
			t.Fatal("the store still streams to a client that left")
		}
	}
}

func TestSessionThatIsOver(t *testing.T) {
	url, _ := serve(t, start(t, &backend{}, nil))
	resp := open(t, url+"/v1/sessions/s1/events:watch", "Last-Event-ID", "9-0")
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusNoContent || len(body) > 0 || err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("got %d %q %v, want 204, which tells a browser to stop", resp.StatusCode, body, err)
	}
}
