//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestJournalSpeed prints how long a journaled write takes, fsync included, by
// how many come at a time, and how fast what waits is replayed with nothing else
// to do.
func TestJournalSpeed(t *testing.T) {
	e := newFaultEnv(t, "--data-dir", t.TempDir())
	l := newLedger(e.note)
	const sessions = 256
	ids := make([]string, sessions)
	parallel(t, sessions, func(ctx context.Context, i int) error {
		s, err := e.store.CreateSession(ctx, &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", i), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Hour)}})
		ids[i] = s.GetId()
		return err
	})
	for _, id := range ids {
		l.told[id], l.ids = &told{}, append(l.ids, id)
	}
	e.proxy.Stop()
	for _, clients := range []int{1, 16, 64} {
		e.calls = nil
		const lasts = 2 * time.Second
		var wg sync.WaitGroup
		until := time.Now().Add(lasts)
		for c := range clients {
			w := &writer{ledger: l, store: e.store, user: fmt.Sprintf("%d-%d", clients, c)}
			// Each session belongs to one client.
			for i := c; i < sessions; i += clients {
				w.mine = append(w.mine, ids[i])
			}
			wg.Go(func() {
				for ; time.Now().Before(until); w.n++ {
					w.event(t.Context(), w.mine[w.n%len(w.mine)])
				}
			})
		}
		wg.Wait()
		var m journaled
		e.countJournaled(&m)
		t.Logf("%d clients: %.0f writes/s journaled, p99 %s", clients, float64(m.count)/lasts.Seconds(), show(m.p99))
		if m.failed > 0 || m.count < 50 {
			t.Errorf("%d writes journaled, %s failed", m.count, byCode(e.calls))
		}
	}
	waiting := e.status(t).GetJournalDepth()
	must(t, e.proxy.Start())
	// What counts is from when Redis is asked again, not what the breaker waits.
	for e.status(t).GetJournalDepth() == waiting {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	for deadline := began.Add(60 * time.Second); e.status(t).GetJournalDepth() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d writes still wait", e.status(t).GetJournalDepth(), waiting)
		}
	}
	took := time.Since(began)
	t.Logf("%d writes of %d sessions replayed in %s: %.0f writes/s", waiting, sessions, show(took), float64(waiting)/took.Seconds())
	if lost := l.lost(t, e.store); lost > 0 || len(l.wrong) > 0 {
		t.Errorf("%d writes lost; %v", lost, l.wrong)
	}
}
