package poll_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/services/gateway/internal/poll"
)

// clock is a clock that stands still until it is moved.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time       { return time.UnixMilli(c.now.Load()) }
func (c *clock) Move(d time.Duration) { c.now.Add(d.Milliseconds()) }

func limiter(t *testing.T) (*poll.Limiter, *clock) {
	t.Helper()
	c := &clock{}
	l, err := poll.New(5*time.Second, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func TestOneTurnInAnInterval(t *testing.T) {
	l, c := limiter(t)
	for step, tt := range []struct {
		move            time.Duration
		client, session string
		want            time.Duration
	}{
		{0, "a", "s", 0},
		{0, "a", "s", 5 * time.Second},
		{0, "b", "s", 0},
		{0, "a", "t", 0},
		{4999 * time.Millisecond, "a", "s", time.Millisecond},
		{time.Millisecond, "a", "s", 0},
		// Being refused does not push the next turn away.
		{time.Second, "a", "s", 4 * time.Second},
		{4 * time.Second, "a", "s", 0},
		{time.Hour, "a", "s", 0},
	} {
		c.Move(tt.move)
		if got := l.Take(tt.client, tt.session); got != tt.want {
			t.Errorf("step %d: got %v, want %v", step, got, tt.want)
		}
	}
	l.GiveBack("a", "s")
	if got := l.Take("a", "s"); got != 0 {
		t.Errorf("after the turn was given back: got %v, want 0", got)
	}
	l.GiveBack("nobody", "nothing")
}

func TestConcurrentTakes(t *testing.T) {
	l, c := limiter(t)
	for range 20 {
		var won atomic.Int32
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				if l.Take("a", "s") == 0 {
					won.Add(1)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of 16 got the one turn", won.Load())
		}
		c.Move(5 * time.Second)
	}
}

func TestManyClientsDoNotGrowItForEver(t *testing.T) {
	l, _ := limiter(t)
	for i := range 250_000 {
		l.Take("a", fmt.Sprint(i))
	}
	if n := l.Len(); n > 100_000 {
		t.Errorf("remembers %d, want a bound", n)
	}
	if l.Take("a", "249999") == 0 {
		t.Error("the latest must be remembered")
	}
}

func TestWhatIsAPoll(t *testing.T) {
	for line, want := range map[string]string{
		"GET /v1/sessions/s1/events":       "s1",
		"GET /v1/sessions/s1/events?a=b":   "s1",
		"GET /v1/sessions/%731/events":     "s1",
		"GET /v1/sessions/s:x/events":      "s:x",
		"POST /v1/sessions/s1/events":      "",
		"GET /v1/sessions/s1/events:watch": "",
		"GET /v1/sessions/s1/events/":      "",
		"GET /v1/sessions/a%2Fb/events":    "",
		"GET /v1/sessions/s1":              "",
		"GET /v1/sessions//events":         "",
		"GET /v1/sessions/events":          "",
		"GET /v1/users/s1/events":          "",
	} {
		method, target, _ := strings.Cut(line, " ")
		if got := poll.Session(httptest.NewRequestWithContext(t.Context(), method, target, http.NoBody)); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

func TestWhatWaits(t *testing.T) {
	for query, want := range map[string]bool{
		"": false, "wait=": false, "wait=1s": true, "wait=999ms": false, "wait=20s": true, "wait=30s": true, "wait=30.1s": false, "wait=20": false,
		"wait=-20s": false, "wait=0s": false, "wait=20s&wait=0s": false, "wait=20s&wait.seconds=0": false, "wait.seconds=20": false, "after=1&wait=5s": true,
	} {
		if got := poll.Waits(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/sessions/s1/events?"+query, http.NoBody)); got != want {
			t.Errorf("%q: got %v, want %v", query, got, want)
		}
	}
}

func TestWaiters(t *testing.T) {
	w := poll.NewWaiters(2)
	first, second := w.Enter("a"), w.Enter("a")
	if first == nil || second == nil || w.Enter("a") != nil {
		t.Fatal("two of a client may wait, and no third")
	}
	if w.Enter("b") == nil {
		t.Error("another client is not concerned")
	}
	first()
	if third := w.Enter("a"); third == nil {
		t.Error("a place that is left is free")
	} else {
		third()
	}
	second()
	var inside, most atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 100 {
				leave := w.Enter("c")
				if leave == nil {
					continue
				}
				if n := inside.Add(1); n > most.Load() {
					most.Store(n)
				}
				inside.Add(-1)
				leave()
			}
		})
	}
	all.Wait()
	if most.Load() > 2 {
		t.Errorf("%d were in at once, want 2 at most", most.Load())
	}
	if w.Enter("c") == nil {
		t.Error("all have left, and there is no place")
	}
}

func TestRefusals(t *testing.T) {
	for after, want := range map[time.Duration]string{time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", 5 * time.Second: "5"} {
		w := httptest.NewRecorder()
		poll.Refuse(w, after)
		if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != want {
			t.Errorf("%v: got %d, Retry-After %q, want 429, %q", after, w.Code, w.Header().Get("Retry-After"), want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{"/v1/sessions/s1/events", "/v1/sessions//events", "/v1/sessions/a/b/events", "/v1/sessions/events", "", "/"} {
		f.Add(s, "wait=20s")
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path, RawQuery: query}}
		if id := poll.Session(r); id != "" && "/v1/sessions/"+id+"/events" != path {
			t.Errorf("%q: the session %q is not in it", path, id)
		}
		// What the limiter lets through as a wait must be one for the store too.
		if poll.Waits(r) && len(r.URL.Query()["wait"]) != 1 {
			t.Errorf("%q waits", query)
		}
	})
}

// TestNoIntervalRefusesNobody: however callers come between each other.
func TestNoIntervalRefusesNobody(t *testing.T) {
	l, err := poll.New(0, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20_000 {
				if after := l.Take("a", "s"); after != 0 {
					t.Errorf("refused for %v", after)
					return
				}
			}
		})
	}
	wg.Wait()
}
