//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	// idleLife is that of the sessions that are to be swept from a full server; idleMany
	// and liveMany are how many there are of them, and of those that live on.
	idleLife = 5 * time.Second
	idleMany = 400
	liveMany = 90
	// idleBytes is the size of a session's data.
	idleBytes = 6000
)

var fullMemory = scenario{
	name: "maxmemory is reached, noeviction", expect: "creations wait or fail; ends, deletions, revocations and sweeps work; memory falls, and creations are accepted again",
	run: func(t *testing.T, store ...string) string {
		t.Helper()
		f := fault{redis: []string{"--maxmemory-policy", "noeviction"}, start: startAlone}
		e := f.startEnv(t, append([]string{"--retention", "1s", "--settle-max", "1s"}, store...)...)
		idle, live := e.fill(t, "idle", idleMany, idleLife), e.fill(t, "live", liveMany, time.Hour)
		deadline := e.lastDeadline(t, idle)
		used := redistest.InfoInt(t, e.redis, "memory", "used_memory")
		redistest.LimitMemory(t, e.redis, "noeviction", -idleMany*idleBytes/4)
		full := time.Now()
		refused, taken := e.fillUp(t, store)
		e.endWhileFull(t, live)
		if refusals := redistest.Info(t, e.redis, "errorstats")["errorstat_OOM"]; refusals == "" {
			t.Fatal("the server refused nothing: it was not full")
		}
		swept := e.awaitSwept(t, idle, deadline)
		eventually(t, 30*time.Second, "a full server has room again", func() bool {
			h, err := e.create(t, "room", time.Hour)
			return err == nil && !h
		})
		room := time.Since(full)
		after := used
		eventually(t, 10*time.Second, "memory falls by what the idle sessions took", func() bool {
			after = redistest.InfoInt(t, e.redis, "memory", "used_memory")
			return after < used-idleMany*idleBytes/2
		})
		eventually(t, 20*time.Second, "the journal is empty", func() bool { return e.status(t).GetJournalDepth() == 0 })
		for _, id := range taken {
			if s := look(t, e.store, id); s.GetEndTime() != nil {
				t.Errorf("a session that was accepted meanwhile is over: %v", s)
			}
		}
		return fmt.Sprintf("%d creations failed, %d were journaled; %d of %d ends, deletions and revocations done; %d idle sessions expired at most %s after their deadline; memory from %.1f to %.1f MB; creations in Redis again after %s",
			refused, len(taken), liveMany, liveMany, len(idle), show(swept), float64(used)/1e6, float64(after)/1e6, show(room))
	},
}

// create creates a session of some kilobytes, and reports whether the journal took it.
func (e *faultEnv) create(t *testing.T, user string, life time.Duration) (journaled bool, err error) {
	t.Helper()
	w := &writer{ledger: newLedger(func(c faultCall, _ error) { journaled = c.journaled }), store: e.store}
	id := w.createAs(t.Context(), &sessionv1.CreateSessionRequest{
		User: user, Data: structpb.NewStringValue(strings.Repeat("x", idleBytes)), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(life)},
	})
	if id != "" {
		e.ids = append(e.ids, id)
	}
	return journaled, w.err
}

// fill creates sessions of users of a kind, and returns their ids.
func (e *faultEnv) fill(t *testing.T, kind string, many int, life time.Duration) []string {
	t.Helper()
	from := len(e.ids)
	for n := range many {
		_, err := e.create(t, fmt.Sprint(kind, "-", n), life)
		must(t, err)
	}
	return e.ids[from:]
}

func (e *faultEnv) lastDeadline(t *testing.T, ids []string) time.Time {
	t.Helper()
	return look(t, e.store, ids[len(ids)-1]).GetExpireTime().AsTime()
}

// fillUp creates sessions in a full server: more than would open a breaker. It returns
// how many failed, and the ids of those that the journal took.
func (e *faultEnv) fillUp(t *testing.T, store []string) (refused int, taken []string) {
	t.Helper()
	for range 4 * faultFailures {
		journaled, err := e.create(t, "more", time.Hour)
		switch {
		case err == nil && journaled:
			taken = append(taken, e.ids[len(e.ids)-1])
		case err == nil:
			t.Fatal("a full server takes a creation")
		case status.Code(err) != codes.Unavailable:
			t.Fatal(err)
		default:
			refused++
		}
	}
	if journals := len(store) > 0; journals != (len(taken) > 0) {
		t.Errorf("%d creations failed and %d were journaled, with a journal: %v", refused, len(taken), journals)
	}
	return refused, taken
}

// endWhileFull ends, deletes and revokes a third of the sessions each. Each call must
// be answered by Redis at once.
func (e *faultEnv) endWhileFull(t *testing.T, live []string) {
	t.Helper()
	for n, id := range live {
		var err error
		switch n % 3 {
		case 0:
			_, err = e.store.EndSession(t.Context(), &sessionv1.EndSessionRequest{Id: id})
		case 1:
			_, err = e.store.DeleteSession(t.Context(), &sessionv1.DeleteSessionRequest{Id: id})
		default:
			var r *sessionv1.RevokeUserSessionsResponse
			r, err = e.store.RevokeUserSessions(t.Context(), &sessionv1.RevokeUserSessionsRequest{User: fmt.Sprint("live-", n)})
			if err == nil && r.GetCount() != 1 {
				t.Errorf("%d sessions of live-%d were revoked, want 1", r.GetCount(), n)
			}
		}
		if err != nil {
			t.Errorf("end, deletion or revocation %d in a full server: %v", n, err)
			return
		}
	}
}

// awaitSwept waits until every idle session was swept, and returns how long after the
// last deadline that was.
func (e *faultEnv) awaitSwept(t *testing.T, idle []string, deadline time.Time) time.Duration {
	t.Helper()
	eventually(t, time.Until(deadline)+15*time.Second, "every idle session is expired or purged", func() bool {
		for _, id := range idle {
			s, err := e.store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id})
			if status.Code(err) == codes.NotFound {
				continue
			}
			if must(t, err); s.GetEndTime() == nil {
				return false
			}
		}
		return true
	})
	return time.Since(deadline)
}
