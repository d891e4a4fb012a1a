//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore"
)

// goneWrite is an acknowledged write that is not there: a creation, or an event of a
// session.
type goneWrite struct {
	id, event string
	// born is when the session's creation was acknowledged, at when the write was.
	born, at time.Time
}

// newFaultEnv starts a server behind a proxy and a store over it, with more arguments
// for the store.
func newFaultEnv(t *testing.T, store ...string) *faultEnv {
	t.Helper()
	return fault{}.startEnv(t, store...)
}

// startEnv starts the row's deployment, and a store over it with more arguments.
func (f fault) startEnv(t *testing.T, store ...string) *faultEnv {
	t.Helper()
	e := &faultEnv{redisArgs: f.redis, acked: map[string]map[string]time.Time{}, deadlines: map[string]time.Time{}, born: map[string][2]time.Time{}}
	start := f.start
	if start == nil {
		start = startBehindProxy
	}
	args := append(start(t, e),
		"--redis-timeout", faultTimeout.String(), "--breaker-failures", fmt.Sprint(faultFailures),
		"--breaker-delay", faultDelay.String(), "--sweep-interval", "100ms")
	conn := openStore(t, func(c *sessionstore.Config) { c.Clock = e.now }, append(args, store...)...)
	e.store, e.admin = sessionv1.NewStorageServiceClient(conn), sessionv1.NewAdminServiceClient(conn)
	return e
}

// startServer starts the row's server, which appends to a file unless the row's
// arguments say otherwise.
func (e *faultEnv) startServer(t *testing.T) {
	t.Helper()
	e.redis = redistest.Start(t, append([]string{"--appendonly", "yes", "--appendfsync", "always"}, e.redisArgs...)...)
	e.url = e.redis.URL()
	e.raw = goredis.NewClient(&goredis.Options{Addr: e.redis.Addr})
	t.Cleanup(func() { _ = e.raw.Close() })
}

// startAlone starts a server that the store connects to itself.
func startAlone(t *testing.T, e *faultEnv) []string {
	t.Helper()
	e.startServer(t)
	return []string{"--redis-url", e.url}
}

func startBehindProxy(t *testing.T, e *faultEnv) []string {
	t.Helper()
	e.startServer(t)
	e.proxy = newProxy(t, e.redis.Addr)
	return []string{"--redis-url", "redis://" + e.proxy.Listen}
}

// warning returns the status's warning of a kind, nil for none.
func (e *faultEnv) warning(t *testing.T, code string) *sessionv1.StoreWarning {
	t.Helper()
	for _, w := range e.status(t).GetWarnings() {
		if w.GetCode() == code {
			return w
		}
	}
	return nil
}

// lost reads everything that was acknowledged back, and counts what is not there.
func (e *faultEnv) lost(t *testing.T) (writes, lost int) {
	t.Helper()
	e.mu.Lock()
	acked, born := maps.Clone(e.acked), maps.Clone(e.born)
	e.mu.Unlock()
	for id, events := range acked {
		writes += 1 + len(events)
		_, stale, err := e.get(t.Context(), id)
		if stale {
			t.Fatal("what is remembered cannot tell what was lost")
		}
		have := map[string]bool{}
		switch {
		case err == nil:
			have = e.stored(t, id)
		case status.Code(err) != codes.NotFound:
			t.Fatal(err)
		default:
			e.gone = append(e.gone, goneWrite{id: id, born: born[id][1], at: born[id][1]})
		}
		for ev, at := range events {
			if !have[ev] {
				e.gone = append(e.gone, goneWrite{id: id, event: ev, born: born[id][1], at: at})
			}
		}
	}
	return writes, len(e.gone)
}

// stored returns the events of a session that are there, by id.
func (e *faultEnv) stored(t *testing.T, id string) map[string]bool {
	t.Helper()
	have := map[string]bool{}
	after := "0"
	for {
		page, err := e.store.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, After: &after, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range page.GetEvents() {
			if have[ev.GetId()] {
				t.Errorf("event %s of %s is stored twice", ev.GetId(), id)
			}
			have[ev.GetId()] = true
		}
		if len(page.GetEvents()) == 0 {
			return have
		}
		after = page.GetNextCursor()
	}
}
