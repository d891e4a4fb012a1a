package redis_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// guarded opens a store whose breakers can be looked at.
func guarded(t *testing.T, url string, timeout, delay time.Duration) (*redis.Store, *resilience.Registry) {
	t.Helper()
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: delay}, nil)
	return open(t, url, func(o *redis.Options) { o.Timeout, o.Breakers = timeout, breakers }), breakers
}

func state(breakers *resilience.Registry, class string) resilience.Status {
	for _, s := range breakers.List() {
		if s.Class == class {
			return s
		}
	}
	return resilience.Status{}
}

// TestOutageOpensAndRecovers for a server that is killed, and for one that no
// longer answers.
func TestOutageOpensAndRecovers(t *testing.T) {
	const timeout, delay = 100 * time.Millisecond, 400 * time.Millisecond
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			s, breakers := guarded(t, server.URL(), timeout, delay)
			id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
			if err := outage.begin(server); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			for state(breakers, redis.ClassRead).State != resilience.Open {
				if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
					t.Fatalf("while Redis is away: %v", err)
				}
			}
			// 5 failures, a timeout each at most; and what the machine takes.
			if took := time.Since(begin); took > 5*timeout+time.Second {
				t.Errorf("opened after %v", took)
			}
			if st := state(breakers, redis.ClassRead); st.Node != server.Addr || st.LastFailure.IsZero() || st.Failures < 5 {
				t.Errorf("%+v", st)
			}
			var took []time.Duration
			for range 1000 {
				at := time.Now()
				_, err := s.Get(t.Context(), id)
				var open *resilience.OpenError
				if errors.As(err, &open) {
					took = append(took, time.Since(at))
				}
			}
			slices.Sort(took)
			if len(took) < 500 {
				t.Fatalf("only %d of 1000 calls were turned away", len(took))
			}
			t.Logf("while open: p50 %v, p99 %v of %d calls", took[len(took)/2], took[len(took)*99/100], len(took))

			if err := outage.end(server); err != nil {
				t.Fatal(err)
			}
			storagetest.Until(t, "the breakers close again", func() bool {
				_, _ = s.Get(t.Context(), id)
				_, _ = s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
				return !breakers.Degraded(redis.ClassRead, redis.ClassFree)
			})
			storagetest.Until(t, "the feed is followed again", func() bool { return state(breakers, redis.ClassStream).State == resilience.Closed })
		})
	}
}

// TestAnswersAndDeparturesMoveNoBreaker: 10,000 not found, conflicts and
// callers that leave, some while the server does not answer.
func TestAnswersAndDeparturesMoveNoBreaker(t *testing.T) {
	server := redistest.Start(t)
	s, breakers := guarded(t, server.URL(), 5*time.Second, time.Hour)
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	for g := range 20 {
		wg.Go(func() {
			for n := range 500 {
				switch n % 4 {
				case 0:
					if _, err := s.Get(t.Context(), sessionid.New(2)); !errors.Is(err, storage.ErrNotFound) {
						t.Errorf("unknown: %v", err)
					}
				case 1:
					if _, err := s.Update(t.Context(), id, storage.Update{IfRevision: 999}); !errors.Is(err, storage.ErrConflict) {
						t.Errorf("conflict: %v", err)
					}
				case 2:
					if _, err := s.Get(gone, id); !errors.Is(err, context.Canceled) {
						t.Errorf("gone: %v", err)
					}
				case 3:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+(g+n)%300)*time.Microsecond)
					_, err := s.GetMany(ctx, []string{id, id})
					cancel()
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("in a hurry: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	for n := range 40 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			var err error
			if n%2 == 0 {
				_, err = s.Get(ctx, id)
			} else {
				var res []storage.ExtendResult
				if res, err = s.Extend(ctx, []storage.Activity{{SessionID: id}, {SessionID: id}}); err == nil {
					err = res[0].Err
				}
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("left while the server does not answer: %v", err)
			}
		})
	}
	wg.Wait()
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "it answers again", func() bool {
		_, err := s.Get(t.Context(), id)
		return err == nil
	})
	for _, st := range breakers.List() {
		if st.State != resilience.Closed || st.Trips != 0 || !st.LastFailure.IsZero() {
			t.Errorf("moved: %+v", st)
		}
	}
}

// TestFullServerIsAFault: with no memory left, writes are refused and reads go
// on; nothing acknowledged is lost, and what was refused was not stored.
func TestFullServerIsAFault(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	s, breakers := guarded(t, server.URL(), time.Second, 200*time.Millisecond)
	client := raw(t, server)
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	if err := client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	event := func(n int) error {
		_, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: fmt.Sprint("e", n), Type: "input:text"}})
		return err
	}
	for n := range 10 {
		if err := event(n); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("write %d on a full server: %v", n, err)
		}
	}
	if state(breakers, redis.ClassWrite).State != resilience.Open {
		t.Errorf("writes: %+v", state(breakers, redis.ClassWrite))
	}
	if _, err := s.Get(t.Context(), id); err != nil || state(breakers, redis.ClassRead).State != resilience.Closed {
		t.Errorf("reads: %v %+v", err, state(breakers, redis.ClassRead))
	}
	if err := client.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "writes are taken again", func() bool { return event(100) == nil })
	page, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 100})
	if err != nil || len(page.Events) != 2 {
		t.Errorf("%v, %v: want session:created and the one that was acknowledged", page.Events, err)
	}
}

// TestBusyServerIsAFault: a server that answers, but only that it can do nothing,
// is as good as away. Every kind of call says so, and its breaker opens.
func TestBusyServerIsAFault(t *testing.T) {
	server := redistest.Start(t, "--busy-reply-threshold", "1")
	s, breakers := guarded(t, server.URL(), 5*time.Second, time.Hour)
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	raw := goredis.NewClient(&goredis.Options{Addr: server.Addr, ReadTimeout: time.Minute, MaxRetries: -1})
	defer raw.Close()
	var script sync.WaitGroup
	script.Go(func() { _ = raw.Eval(t.Context(), "while true do end", nil).Err() })
	defer script.Wait()
	defer func() {
		if err := raw.ScriptKill(t.Context()).Err(); err != nil {
			t.Error(err)
		}
	}()
	storagetest.Until(t, "the script runs", func() bool {
		err := raw.Ping(t.Context()).Err()
		return err != nil && strings.HasPrefix(err.Error(), "BUSY ")
	})

	for name, call := range map[string]func() error{
		"get":    func() error { _, err := s.Get(t.Context(), id); return err },
		"update": func() error { _, err := s.Update(t.Context(), id, storage.Update{}); return err },
		"list":   func() error { _, err := s.List(t.Context(), storage.ListQuery{User: "ann", Limit: 10}); return err },
		"end":    func() error { _, err := s.End(t.Context(), id, "done"); return err },
		"delete": func() error { return s.Delete(t.Context(), id) },
		"get many": func() error {
			r, err := s.GetMany(t.Context(), []string{id})
			return errors.Join(err, r[0].Err)
		},
		"extend": func() error {
			r, err := s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
			return errors.Join(err, r[0].Err)
		},
	} {
		if err := call(); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, class := range []string{redis.ClassRead, redis.ClassWrite, redis.ClassFree} {
		for range 5 {
			_, _ = s.Get(t.Context(), id)
			_, _ = s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
			_, _ = s.End(t.Context(), id, "done")
		}
		if st := state(breakers, class); st.State != resilience.Open {
			t.Errorf("%s: %+v", class, st)
		}
	}
}
