package resilient_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/resilient"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func inMemory(t testing.TB) (*memory.Store, *storagetest.Clock) {
	t.Helper()
	c := storagetest.NewClock()
	o := storagetest.OptionsFor(time.Second)
	s, err := memory.New(memory.Options{Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention, Clock: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, c
}

func options(c *storagetest.Clock) resilient.Options {
	return resilient.Options{Clock: c.Now, Retry: resilience.RetryConfig{Delay: time.Microsecond, Budget: 10}}
}

func fixture(s storage.Store, inner *memory.Store, c *storagetest.Clock) storagetest.Fixture {
	return storagetest.Fixture{
		Store: s, Unit: time.Second, Now: c.Now, Advance: c.Advance,
		Entries: func() int { return int(inner.Status(context.Background()).Entries) },
	}
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		inner, c := inMemory(t)
		return fixture(resilient.New(inner, options(c)), inner, c)
	}, nil)
}

// tries is how many there are for a call, of which all but the last may fail.
const tries = 4

var errLost = fmt.Errorf("%w: connection reset", storage.ErrUnavailable)

// flaky fails every other try of those that are made again: in turn before and
// after it was applied. The last one works.
type flaky struct {
	storage.Store
	calls atomic.Int64
}

func flake[T any](ctx context.Context, f *flaky, op func() (T, error)) (T, error) {
	var none T
	if last(ctx) {
		return op()
	}
	switch f.calls.Add(1) % 4 {
	case 1:
		return none, errLost
	case 3:
		if _, err := op(); err != nil {
			return none, err
		}
		return none, errLost
	default:
		return op()
	}
}

// last says whether no further try is made after this one.
func last(ctx context.Context) bool { return resilience.Attempt(ctx) == tries }

func (f *flaky) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	return flake(ctx, f, func() (*sessionv1.Session, error) { return f.Store.Get(ctx, id) })
}

func (f *flaky) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	return flake(ctx, f, func() (storage.SessionPage, error) { return f.Store.List(ctx, q) })
}

func (f *flaky) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	return flake(ctx, f, func() (storage.UserPage, error) { return f.Store.ActiveUsers(ctx, q) })
}

func (f *flaky) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	return flake(ctx, f, func() (storage.Explanation, error) { return f.Store.Explain(ctx, id) })
}

func (f *flaky) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	if q.Wait > 0 {
		return f.Store.ListEvents(ctx, q)
	}
	return flake(ctx, f, func() (storage.EventPage, error) { return f.Store.ListEvents(ctx, q) })
}

func (f *flaky) Create(ctx context.Context, s *sessionv1.Session, request string) (*sessionv1.Session, bool, error) {
	existed := false
	out, err := flake(ctx, f, func() (out *sessionv1.Session, err error) {
		out, existed, err = f.Store.Create(ctx, s, request)
		return out, err
	})
	return out, existed, err
}

func (f *flaky) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	return flake(ctx, f, func() (*sessionv1.Session, error) { return f.Store.Update(ctx, id, u) })
}

func (f *flaky) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	return flake(ctx, f, func() (*sessionv1.Session, error) { return f.Store.End(ctx, id, reason) })
}

func (f *flaky) Delete(ctx context.Context, id string) error {
	_, err := flake(ctx, f, func() (struct{}, error) { return struct{}{}, f.Store.Delete(ctx, id) })
	return err
}

func (f *flaky) Replay(ctx context.Context, w storage.Write) error {
	_, err := flake(ctx, f, func() (struct{}, error) { return struct{}{}, f.Store.Replay(ctx, w) })
	return err
}

func (f *flaky) DeletePolicy(ctx context.Context, project string) error {
	_, err := flake(ctx, f, func() (struct{}, error) { return struct{}{}, f.Store.DeletePolicy(ctx, project) })
	return err
}

func (f *flaky) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	return flake(ctx, f, func() ([]string, error) { return f.Store.Append(ctx, id, events) })
}

// Extend and GetMany lose single answers.
func (f *flaky) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	if len(items) == 1 {
		return flake(ctx, f, func() ([]storage.ExtendResult, error) { return f.Store.Extend(ctx, items) })
	}
	res, err := f.Store.Extend(ctx, items)
	for i := range res {
		if !last(ctx) && f.calls.Add(1)%3 == 0 {
			res[i] = storage.ExtendResult{Err: errLost}
		}
	}
	return res, err
}

func (f *flaky) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	res, err := f.Store.GetMany(ctx, ids)
	for i := range res {
		if !last(ctx) && f.calls.Add(1)%3 == 0 {
			res[i] = storage.SessionResult{Err: errLost}
		}
	}
	return res, err
}

const lostExtension = "the answer to an extension that was lost is, the second time, that it is not needed any more"

// TestConformanceThroughFaults: over a store that keeps losing answers, before
// and after it has applied a call, everything is as over one that does not.
func TestConformanceThroughFaults(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		inner, c := inMemory(t)
		opts := options(c)
		opts.Retry.Attempts, opts.Retry.Burst = tries, 1000
		return fixture(resilient.New(&flaky{Store: inner}, opts), inner, c)
	}, map[string]string{
		"extend/one of many at once":                lostExtension,
		"extend/strategies":                         lostExtension,
		"extend/judged by event time":               lostExtension,
		"extend/the same again never extends twice": lostExtension,
		"extend/to the cap and not beyond":          lostExtension,
		"delete/leaves nothing":                     "whether a try that was lost has removed what is not there cannot be known",
	})
}

// failing answers every call with an error.
type failing struct {
	storage.Store
	err    error
	calls  atomic.Int64
	writes []string
}

func (f *failing) Get(context.Context, string) (*sessionv1.Session, error) {
	f.calls.Add(1)
	return nil, f.err
}

func (f *failing) Update(_ context.Context, _ string, u storage.Update) (*sessionv1.Session, error) {
	f.calls.Add(1)
	f.writes = append(f.writes, u.WriteID)
	return nil, f.err
}

func (f *failing) Replay(context.Context, storage.Write) error {
	f.calls.Add(1)
	return f.err
}

func TestTriesAgainOnlyWhatMayHelp(t *testing.T) {
	open := fmt.Errorf("%w: %w", storage.ErrUnavailable, &resilience.OpenError{Breaker: "read@a:1"})
	for _, c := range []struct {
		name  string
		err   error
		calls int64
	}{
		{"a fault", errLost, 3},
		{"an open breaker", open, 1},
		{"not found", storage.ErrNotFound, 1},
		{"conflict", storage.ErrConflict, 1},
		{"the caller has left", context.Canceled, 1},
		{"closed", storage.ErrClosed, 1},
	} {
		f := &failing{err: c.err}
		s := resilient.New(f, options(&storagetest.Clock{}))
		if _, err := s.Get(t.Context(), "id"); !errors.Is(err, c.err) || f.calls.Load() != c.calls {
			t.Errorf("%s: %d calls, %v; want %d", c.name, f.calls.Load(), err, c.calls)
		}
	}
	// A try that was applied would be taken for somebody else's change, had it no
	// name.
	for _, given := range []string{"", "mine"} {
		f := &failing{err: errLost}
		s := resilient.New(f, options(&storagetest.Clock{}))
		_, err := s.Update(t.Context(), "id", storage.Update{IfRevision: 3, WriteID: given})
		if names := slices.Compact(f.writes); !errors.Is(err, errLost) || f.calls.Load() != 3 || len(names) != 1 || names[0] == "" || given != "" && names[0] != given {
			t.Errorf("an update with a revision, named %q: %d calls, named %q, %v", given, f.calls.Load(), f.writes, err)
		}
	}
}

// TestReplayIsNeverTurnedAway: it is tried again, and needs no place among the
// writes.
func TestReplayIsNeverTurnedAway(t *testing.T) {
	f := &failing{err: errLost}
	if err := resilient.New(f, options(&storagetest.Clock{})).Replay(t.Context(), storage.Write{}); !errors.Is(err, errLost) || f.calls.Load() != 3 {
		t.Errorf("a fault: %d calls, %v", f.calls.Load(), err)
	}
	inner, c := inMemory(t)
	full := &slow{Store: inner, release: make(chan struct{})}
	opts := options(c)
	opts.Writes = resilience.LimitConfig{Least: 1, Most: 1, Initial: 1}
	s := resilient.New(full, opts)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.SetPolicy(t.Context(), "acme", nil) })
	storagetest.Until(t, "a write takes the only place", func() bool { return full.in.Load() == 1 })
	if _, err := s.SetPolicy(t.Context(), "acme", nil); !errors.Is(err, storage.ErrExhausted) {
		t.Errorf("another write: %v", err)
	}
	if err := s.Replay(t.Context(), storage.Write{SessionID: "none", At: c.Now(), Delete: true}); err != nil {
		t.Errorf("a replayed write: %v", err)
	}
	if err := s.Hold(t.Context(), "me", c.Now()); err != nil {
		t.Errorf("a hold: %v", err)
	}
	close(full.release)
	wg.Wait()
}

// slow holds every read, and every change of a policy, until it is told.
type slow struct {
	storage.Store
	in      atomic.Int64
	release chan struct{}
}

func (s *slow) Get(ctx context.Context, _ string) (*sessionv1.Session, error) {
	s.in.Add(1)
	select {
	case <-s.release:
		return &sessionv1.Session{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *slow) SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	if p != nil {
		return s.Store.SetPolicy(ctx, project, p)
	}
	s.in.Add(1)
	<-s.release
	return &sessionv1.ProjectPolicy{}, nil
}

// TestShedsBeyondTheLimit, and writes go on while reads are full.
func TestShedsBeyondTheLimit(t *testing.T) {
	inner, c := inMemory(t)
	gate := &slow{Store: inner, release: make(chan struct{})}
	opts := options(c)
	opts.Reads = resilience.LimitConfig{Least: 8, Most: 8, Initial: 8}
	s := resilient.New(gate, opts)
	var wg sync.WaitGroup
	var shed, served atomic.Int64
	for range 100 {
		wg.Go(func() {
			_, err := s.Get(t.Context(), "id")
			var why *resilience.ShedError
			switch {
			case err == nil:
				served.Add(1)
			case errors.Is(err, storage.ErrExhausted) && errors.As(err, &why):
				shed.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); shed.Load() < 92; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("only %d of 100 reads are turned away", shed.Load())
		}
	}
	if _, err := s.SetPolicy(t.Context(), "acme", &sessionv1.TTLPolicy{}); err != nil {
		t.Errorf("a write while reads are full: %v", err)
	}
	close(gate.release)
	wg.Wait()
	if shed.Load() != 92 || served.Load() != 8 || gate.in.Load() != 8 {
		t.Errorf("%d shed, %d served, %d got through; want 92, 8 and 8", shed.Load(), served.Load(), gate.in.Load())
	}
	if reads, limit, writes, _ := s.Loads(); reads != 0 || limit != 8 || writes != 0 {
		t.Errorf("left: %d reads of %d, %d writes", reads, limit, writes)
	}
}
