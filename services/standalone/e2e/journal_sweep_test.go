//go:build e2e

package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestOthersWaitForTheJournal: a replica is cut off from Redis and journals the
// activity of a session, whose deadline passes. Another one, which has Redis and
// an activity service that is up to date, sweeps all the while: it must leave the
// session alone until the activity was replayed and has extended it, also when
// the first one was killed meanwhile.
func TestOthersWaitForTheJournal(t *testing.T) {
	for name, killed := range map[string]bool{"it lives": false, "it is killed": true} {
		t.Run(name, func(t *testing.T) {
			redis := redistest.Start(t)
			proxy := newProxy(t, redis.Addr)
			dir := t.TempDir()
			cutOff := func() (p *process, store sessionv1.StorageServiceClient) {
				addr, admin := freeAddr(t), freeAddr(t)
				p = start(t, "sessionstore", "--grpc-addr", addr, "--admin-addr", admin, "--redis-url", "redis://"+proxy.Listen,
					"--redis-timeout", faultTimeout.String(), "--breaker-delay", faultDelay.String(), "--data-dir", dir)
				ready(t, "http://"+admin+"/readyz", p)
				return p, dial(t, addr)
			}
			p, one := cutOff()
			addr, admin := freeAddr(t), freeAddr(t)
			ready(t, "http://"+admin+"/readyz", start(t, "sessionstore", "--grpc-addr", addr, "--admin-addr", admin, "--redis-url", redis.URL(), "--sweep-interval", "50ms"))
			other := dial(t, addr)
			actAdmin := freeAddr(t)
			ready(t, "http://"+actAdmin+"/readyz", start(t, "activity", "--grpc-addr", freeAddr(t), "--admin-addr", actAdmin, "--store-addr", addr, "--flush-interval", "200ms"))
			expired := func() float64 {
				return metricWhere(t, "http://"+admin+"/metrics", "stoker_swept_total", `action="expired"`)
			}

			// That sessions are swept as soon as they are due, where nothing waits.
			early := shortSession(t, one, "early", time.Second)
			eventually(t, 5*time.Second, "a session that is due is swept", func() bool { return look(t, other, early).GetEndTime() != nil })
			used, unused := shortSession(t, one, "used", 4*time.Second), shortSession(t, one, "unused", 4*time.Second)
			deadline := look(t, other, used).GetExpireTime().AsTime()
			proxy.Stop()
			var h metadata.MD
			_, err := one.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: used, Events: []*sessionv1.Event{{Id: "used", Type: "input:text"}}}, grpc.Header(&h))
			if err != nil || fmt.Sprint(h.Get("stoker-durability")) != "[journal]" {
				t.Fatalf("answered %v %v, want that it is journaled", err, h)
			}
			if !time.Now().Before(deadline) {
				t.Fatal("too late for the activity to count")
			}
			if killed {
				p.stop(t, syscall.SIGKILL)
			}
			swept := expired()
			for time.Now().Before(deadline.Add(3 * time.Second)) {
				for _, id := range []string{used, unused} {
					if s := look(t, other, id); s.GetEndTime() != nil {
						t.Fatalf("swept while activity waits in the journal: %v", s)
					}
				}
				time.Sleep(50 * time.Millisecond)
			}
			if now := expired(); now != swept {
				t.Errorf("%v sessions swept meanwhile", now-swept)
			}

			must(t, proxy.Start())
			if killed {
				_, one = cutOff()
			}
			eventually(t, 15*time.Second, "the used session lives again", func() bool {
				s := look(t, other, used)
				if s.GetEndTime() != nil {
					t.Fatalf("died: %v", s)
				}
				return s.GetExtensionCount() == 1
			})
			if got := look(t, other, used).GetExpireTime().AsTime(); !got.Equal(deadline.Add(30 * time.Second)) {
				t.Errorf("the deadline is %v, want 30 s after %v", got, deadline)
			}
			eventually(t, 15*time.Second, "the unused session is swept", func() bool { return look(t, other, unused).GetEndTime() != nil })
			n := 0
			for _, e := range allEvents(t, other, unused) {
				if e.GetType() == "session:expired" {
					n++
				}
			}
			if s := look(t, one, used); n != 1 || s.GetEndTime() != nil || s.GetExtensionCount() != 1 {
				t.Errorf("%d session:expired of the unused one, want 1; the used one is %v", n, s)
			}
		})
	}
}

// shortSession creates a session that one use extends by 30 s.
func shortSession(t *testing.T, store sessionv1.StorageServiceClient, user string, life time.Duration) string {
	t.Helper()
	s, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: user, TtlPolicy: &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(life), Extension: durationpb.New(30 * time.Second), ExtendBelow: durationpb.New(life), MaxExtensions: proto.Int32(1),
	}})
	must(t, err)
	return s.GetId()
}

// look reads a session.
func look(t *testing.T, store sessionv1.StorageServiceClient, id string) *sessionv1.Session {
	t.Helper()
	s, err := store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id})
	must(t, err)
	return s
}
