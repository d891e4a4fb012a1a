//go:build e2e

package e2e

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
)

// apart is a store with its activity service in another process, which can be
// stopped and started again.
type apart struct {
	deployment
	activityArgs []string
	activity     *process
}

func (a *apart) startActivity(t *testing.T) {
	t.Helper()
	a.activity = start(t, "activity", a.activityArgs...)
}

// newApart starts a store, an activity service that reads its feed, and a
// gateway.
func newApart(t *testing.T, store ...string) *apart {
	t.Helper()
	grpc, admin, gw, actAdmin := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	s := start(t, "sessionstore", append([]string{"--grpc-addr", grpc, "--admin-addr", admin}, store...)...)
	ready(t, "http://"+admin+"/readyz", s)
	a := &apart{
		deployment:   deployment{http: "http://" + gw, grpc: grpc, storeMetrics: "http://" + admin + "/metrics"},
		activityArgs: []string{"--grpc-addr", freeAddr(t), "--admin-addr", actAdmin, "--store-addr", grpc, "--flush-interval", "500ms"},
	}
	a.startActivity(t)
	ready(t, "http://"+actAdmin+"/readyz", a.activity)
	g := start(t, "gateway", "--http-addr", gw, "--store-addr", grpc, "--activity-addr", a.activityArgs[1])
	ready(t, a.http+"/readyz", g)
	return a
}

func (a *apart) session(t *testing.T, user string, baseTTL string) string {
	t.Helper()
	s := a.must(t, http.MethodPost, "/v1/sessions", map[string]any{"user": user, "ttlPolicy": map[string]any{
		"baseTtl": baseTTL, "extension": "30s", "extendBelow": "30s", "maxExtensions": 1,
	}})
	return s["id"].(string)
}

func (a *apart) input(t *testing.T, id string) {
	t.Helper()
	a.must(t, http.MethodPost, "/v1/sessions/"+id+"/events", map[string]any{"events": []any{map[string]any{"type": "input:text"}}})
}

// onBoth runs a test with the store on Redis and with the embedded one.
func onBoth(t *testing.T, args []string, test func(t *testing.T, a *apart)) {
	t.Helper()
	t.Run("redis", func(t *testing.T) {
		test(t, newApart(t, append(args, "--storage", "redis", "--redis-url", redistest.Start(t).URL())...))
	})
	t.Run("embedded", func(t *testing.T) { test(t, newApart(t, append(args, "--storage", "memory")...)) })
}

// TestActivityServiceWasAway for longer than a session had left: the session
// that was used before its deadline lives on, the one that was not dies.
func TestActivityServiceWasAway(t *testing.T) {
	onBoth(t, []string{"--settle-max", "20s"}, func(t *testing.T, a *apart) {
		a.activity.stop(t, syscall.SIGKILL)
		used, unused := a.session(t, "ann", "3s"), a.session(t, "bob", "3s")
		a.input(t, used)
		deadline := a.deadline(t, used)
		for _, id := range []string{used, unused} {
			eventually(t, 10*time.Second, "the deadline passes", func() bool {
				return a.must(t, http.MethodGet, "/v1/sessions/"+id, nil)["phase"] == "EXPIRED"
			})
		}
		// The service stays away for as long again; the sweeper looks four times
		// a second, and must leave both alone.
		for time.Until(deadline.Add(3*time.Second)) > 0 {
			for _, id := range []string{used, unused} {
				if s := a.must(t, http.MethodGet, "/v1/sessions/"+id, nil); s["endTime"] != nil {
					t.Fatalf("swept with its activity in the feed: %v", s)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		a.startActivity(t)
		eventually(t, 15*time.Second, "the used session lives again", func() bool {
			s := a.must(t, http.MethodGet, "/v1/sessions/"+used, nil)
			if s["endTime"] != nil {
				t.Fatalf("died: %v", s)
			}
			return s["extensionCount"] == 1.0 && s["phase"] != "EXPIRED"
		})
		if got := a.deadline(t, used); !got.Equal(deadline.Add(30 * time.Second)) {
			t.Errorf("the deadline is %v, want 30 s after %v", got, deadline)
		}
		eventually(t, 15*time.Second, "the unused session is swept", func() bool {
			return a.must(t, http.MethodGet, "/v1/sessions/"+unused, nil)["endTime"] != nil
		})
		if n := a.eventTypes(t, unused)["session:expired"]; n != 1 {
			t.Errorf("%d session:expired, want 1", n)
		}
	})
}

func (a *apart) deadline(t *testing.T, id string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, a.must(t, http.MethodGet, "/v1/sessions/"+id, nil)["expireTime"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestNothingWaitsLongerThanSettleMax for an activity service that never comes
// back.
func TestNothingWaitsLongerThanSettleMax(t *testing.T) {
	const settle = 4 * time.Second
	onBoth(t, []string{"--settle-max", settle.String()}, func(t *testing.T, a *apart) {
		a.activity.stop(t, syscall.SIGKILL)
		id := a.session(t, "ann", "2s")
		a.input(t, id)
		deadline := a.deadline(t, id)
		var swept map[string]any
		eventually(t, 15*time.Second, "the session is swept", func() bool {
			swept = a.must(t, http.MethodGet, "/v1/sessions/"+id, nil)
			return swept["endTime"] != nil
		})
		end, err := time.Parse(time.RFC3339Nano, swept["endTime"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if waited := end.Sub(deadline); waited < settle || waited > settle+2*time.Second {
			t.Errorf("swept %v after its deadline, want %v and at most a few sweeps more", waited, settle)
		}
	})
}
