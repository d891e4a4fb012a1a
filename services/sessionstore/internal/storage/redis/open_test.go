package redis_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/resilient"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// decorated opens a store as the service has it: near-cache, retries and
// limits, Redis.
func decorated(t *testing.T, url string, timeout, delay time.Duration) (*fallback.Store, *resilience.Registry) {
	t.Helper()
	inner, breakers := guarded(t, url, timeout, delay)
	s, err := fallback.New(resilient.New(inner, resilient.Options{Clock: time.Now}), fallback.Options{Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s, breakers
}

// handlers are the service's over a store, to be called without a transport.
func handlers(t *testing.T, s storage.Store) (context.Context, *server.Server) {
	t.Helper()
	metrics, err := server.NewMetrics(telemetry.Nop().Meter, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return auth.NewContext(t.Context(), auth.Principal{Anonymous: true}), server.New(server.Config{
		Store: s, Shards: storagetest.Shards, Policy: lifetime.DefaultPolicy(), Clock: time.Now, Metrics: metrics, Stopping: t.Context(),
	})
}

// outages are a server that is gone, and one that no longer answers.
var outages = map[string]struct {
	begin, end func(s *redistest.Server) error
}{
	"killed":  {(*redistest.Server).Kill, func(s *redistest.Server) error { return s.Restart(context.Background()) }},
	"stopped": {(*redistest.Server).Pause, (*redistest.Server).Resume},
}

// TestOpenBreakersAnswerAtOnce: with its breakers open, the store answers every
// kind of call without waiting for anything, be it from the near-cache or that
// it cannot. What counts is the median of the rounds' p99, since the machine has
// pauses of its own; with the race detector, which makes a few times as many of
// them, the best round's: what waits does so in every round.
func TestOpenBreakersAnswerAtOnce(t *testing.T) {
	const rounds, calls = 9, 400
	bound, of := time.Millisecond, 50
	if raced {
		bound, of = 4*time.Millisecond, 0 // still less than any wait there is: the shortest is a retry's 5 ms
	}
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			redisServer := redistest.Start(t)
			s, breakers := decorated(t, redisServer.URL(), 100*time.Millisecond, time.Hour)
			ctx, h := handlers(t, s)
			known, _ := create(t, s, newSession(1, "ann", time.Hour), "")
			if err := outage.begin(redisServer); err != nil {
				t.Fatal(err)
			}
			event := []*sessionv1.Event{{Id: "e", Type: "input:text"}}
			unknown := sessionid.New(2)
			kinds := []struct {
				name string
				call func() error
				want error // nil for an answer
			}{
				{"get, from the near-cache", func() error { _, err := s.Get(ctx, known); return err }, nil},
				{"get, not in the near-cache", func() error { _, err := s.Get(ctx, unknown); return err }, storage.ErrUnavailable},
				{"get many", func() error { _, err := s.GetMany(ctx, []string{known, known}); return err }, nil},
				{"list", func() error { _, err := s.List(ctx, storage.ListQuery{Limit: 10}); return err }, storage.ErrUnavailable},
				{"create", func() error { _, _, err := s.Create(ctx, newSession(1, "bob", time.Hour), ""); return err }, storage.ErrUnavailable},
				{"update", func() error { _, err := s.Update(ctx, known, storage.Update{SetData: true}); return err }, storage.ErrUnavailable},
				{"append", func() error { _, err := s.Append(ctx, known, event); return err }, storage.ErrUnavailable},
				{"extend", func() error {
					res, err := s.Extend(ctx, []storage.Activity{{SessionID: known}})
					return errors.Join(err, res[0].Err)
				}, storage.ErrUnavailable},
				{"delete", func() error { return s.Delete(ctx, known) }, storage.ErrUnavailable},
				{"handler of GetSession", func() error { _, err := h.GetSession(ctx, &sessionv1.GetSessionRequest{Id: unknown}); return err }, storage.ErrUnavailable},
				{"handler of AppendEvents", func() error {
					_, err := h.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: known, Events: event})
					return err
				}, storage.ErrUnavailable},
			}
			storagetest.Until(t, "the breakers open", func() bool {
				_, _ = s.Get(ctx, unknown)
				_ = s.Delete(ctx, unknown)
				_, _ = s.Append(ctx, unknown, event)
				for _, class := range []string{redis.ClassRead, redis.ClassWrite, redis.ClassFree} {
					if state(breakers, class).State != resilience.Open {
						return false
					}
				}
				return true
			})
			for _, k := range kinds {
				p99s := make([]time.Duration, rounds)
				for r := range p99s {
					took := make([]time.Duration, calls)
					for i := range took {
						at := time.Now()
						err := k.call()
						took[i] = time.Since(at)
						var open *resilience.OpenError
						if !errors.Is(err, k.want) || (k.want != nil && !errors.As(err, &open)) {
							t.Fatalf("%s: %v, want %v from an open breaker", k.name, err, k.want)
						}
					}
					p99s[r] = percentile(took, 99)
				}
				p99 := percentile(p99s, of)
				t.Logf("%-28s p99 %v (of %d rounds of %d calls; best %v, median %v, worst %v)", k.name, p99, rounds, calls, p99s[0], p99s[rounds/2], p99s[rounds-1])
				if p99 > bound {
					t.Errorf("%s: p99 %v while the breaker is open, want at most %v", k.name, p99, bound)
				}
			}
			if err := outage.end(redisServer); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// percentile sorts in place.
func percentile(of []time.Duration, p int) time.Duration {
	slices.Sort(of)
	return of[min(len(of)-1, len(of)*p/100)]
}

// TestOutageTimes: the breaker opens within failures x timeout of the outage,
// and within a second of a class's first good probe all of its calls are
// answered, with many callers.
func TestOutageTimes(t *testing.T) {
	const timeout, delay, callers = 200 * time.Millisecond, 500 * time.Millisecond, 8
	// What may come on top: the callers' pace, and that each timeout is extended by as
	// much again while the machine is too busy for this process (extensionsRecent).
	const slack = 500*time.Millisecond + 5*timeout
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			redisServer := redistest.Start(t)
			s, breakers := guarded(t, redisServer.URL(), timeout, delay)
			id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
			classes := map[string]func() error{
				redis.ClassRead: func() error { _, err := s.Get(t.Context(), id); return err },
				redis.ClassWrite: func() error {
					_, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
					return err
				},
			}
			for class, call := range classes {
				if err := call(); err != nil {
					t.Fatalf("%s: %v", class, err)
				}
			}
			if err := outage.begin(redisServer); err != nil {
				t.Fatal(err)
			}
			// One caller is the slowest way to fail.
			for class, call := range classes {
				began := time.Now()
				for state(breakers, class).Trips == 0 {
					if err := call(); !errors.Is(err, storage.ErrUnavailable) {
						t.Fatalf("%s while Redis is away: %v", class, err)
					}
				}
				took := time.Since(began)
				t.Logf("%s: opened after %v, of at most %v", class, took, 5*timeout)
				if took > 5*timeout+slack {
					t.Errorf("%s: opened after %v, want at most %v", class, took, 5*timeout)
				}
			}
			if err := outage.end(redisServer); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			for class, call := range classes {
				all.Go(func() {
					r := recoveryOf(call, callers)
					t.Logf("%s: full service %v after the first good probe, %d calls turned away meanwhile; %d of %d failed by themselves", class, r.full, r.turnedAway, r.failed, r.calls)
					if r.first.IsZero() || r.full > time.Second {
						t.Errorf("%s: first good answer at %v, full service %v later, want at most 1 s", class, r.first, r.full)
					}
					// The machine has pauses longer than the timeout.
					if r.failed > r.calls/100 {
						t.Errorf("%s: %d of %d calls failed with the breaker closed", class, r.failed, r.calls)
					}
				})
			}
			all.Wait()
		})
	}
}

type recovery struct {
	first      time.Time // the first good answer
	full       time.Duration
	turnedAway int
	// failed are those that the breaker let through, of all calls.
	failed, calls int
}

// recoveryOf calls until two seconds after the first good answer, and tells how
// long after it the breaker turned the last call away.
func recoveryOf(call func() error, callers int) recovery {
	var mu sync.Mutex
	var first, last time.Time
	var r recovery
	done := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return !first.IsZero() && time.Since(first) > 2*time.Second
	}
	var wg sync.WaitGroup
	end := time.Now().Add(15 * time.Second)
	for range callers {
		wg.Go(func() {
			for !done() && time.Now().Before(end) {
				// A server without persistence answers that there is no session.
				err := call()
				var open *resilience.OpenError
				mu.Lock()
				if !first.IsZero() {
					r.calls++
				}
				switch away := errors.Is(err, storage.ErrUnavailable); {
				case !away && first.IsZero():
					first = time.Now()
				case first.IsZero():
				case errors.As(err, &open):
					last = time.Now()
					r.turnedAway++
				case away:
					r.failed++
				}
				mu.Unlock()
				time.Sleep(2 * time.Millisecond) // the callers' pace
			}
		})
	}
	wg.Wait()
	r.first, r.full = first, max(0, last.Sub(first))
	return r
}

// TestLateCreationRevivesNothing: a creation whose first try comes late, or is
// tried again because the answer was lost, brings nothing back that was deleted
// meanwhile.
func TestLateCreationRevivesNothing(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	in := newSession(1, "ann", time.Hour)
	id, _ := create(t, s, in, "request")
	if err := s.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	out, existed, err := s.Create(t.Context(), in, "request")
	if err != nil || existed || out.GetId() != id {
		t.Errorf("the same creation again: %v, existed %v, %v", out, existed, err)
	}
	if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the deleted session: %v", err)
	}
	again, existed := create(t, s, newSession(1, "ann", time.Hour), "request")
	if existed || again == id {
		t.Errorf("a new creation for the same request: %s, existed %v", again, existed)
	}
}
