package sse_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/services/gateway/internal/sse"
)

// TestAReadTimeoutDoesNotEndAStream: the server's timeout for reading requests
// must not cut off a client that only listens.
func TestAReadTimeoutDoesNotEndAStream(t *testing.T) {
	late := event("2-0")
	late.after = 500 * time.Millisecond
	end := step{err: io.EOF}
	h := &sse.Handler{Store: &store{steps: []step{event("1-0"), late, end}}, Heartbeat: 15 * time.Second, Stopping: t.Context()}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.Serve(r.Context(), w, r, "s1")
	}))
	srv.Config.ReadTimeout = 100 * time.Millisecond
	srv.Start()
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "id: 2-0") {
		t.Errorf("read %q, %v", body, err)
	}
}
