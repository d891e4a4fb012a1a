package resilience_test

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const delay = 40 * time.Millisecond

// record collects changes of state.
type record struct {
	mu      sync.Mutex
	changes []resilience.Change
}

func (r *record) add(c resilience.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes = append(r.changes, c)
}

func (r *record) path() []resilience.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []resilience.State
	for _, c := range r.changes {
		out = append(out, c.To)
	}
	return out
}

func registry(cfg resilience.BreakerConfig) (*resilience.Registry, *record) {
	rec := &record{}
	if cfg.Delay == 0 {
		cfg.Delay = delay
	}
	return resilience.NewRegistry(cfg, rec.add), rec
}

func outcome(fault bool) resilience.Outcome {
	if fault {
		return resilience.Fault
	}
	return resilience.Success
}

func call(b *resilience.Breaker, fault bool) error {
	return b.Guard(func() resilience.Outcome { return outcome(fault) })
}

func status(t *testing.T, r *resilience.Registry, name string) resilience.Status {
	t.Helper()
	for _, s := range r.List() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no breaker %s", name)
	return resilience.Status{}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestOpensProbesAndCloses(t *testing.T) {
	r, rec := registry(resilience.BreakerConfig{})
	b := r.Breaker("read", "a:1")
	for range 4 {
		_ = call(b, true)
	}
	_ = call(b, false) // in a row means in a row
	for range 5 {
		if err := call(b, true); err != nil {
			t.Fatalf("turned away while closed: %v", err)
		}
	}
	var open *resilience.OpenError
	if err := call(b, false); !errors.As(err, &open) || open.Breaker != "read@a:1" || open.RetryAfter <= 0 || open.RetryAfter > delay {
		t.Fatalf("after 5 failures in a row: %v", err)
	}
	s := status(t, r, "read@a:1")
	if s.State != resilience.Open || s.Failures != 5 || s.Trips != 1 || s.LastFailure.IsZero() || s.OpensAt != 5 || s.ClosesAt != 3 {
		t.Errorf("open: %+v", s)
	}
	// Nobody calls: the state is shown as what the next call will find.
	until(t, "the probe is due", func() bool { return status(t, r, "read@a:1").ProbeDue })
	if s := status(t, r, "read@a:1"); s.State != resilience.Open {
		t.Errorf("idle: %+v", s)
	}
	for range 3 {
		if err := call(b, false); err != nil {
			t.Fatalf("probe: %v", err)
		}
	}
	if s := status(t, r, "read@a:1"); s.State != resilience.Closed || s.Failures != 0 {
		t.Errorf("after 3 good probes: %+v", s)
	}
	if want := []resilience.State{resilience.Open, resilience.HalfOpen, resilience.Closed}; !slices.Equal(rec.path(), want) {
		t.Errorf("changes %v, want %v", rec.path(), want)
	}
}

func TestOneBadProbeOpensAgain(t *testing.T) {
	r, rec := registry(resilience.BreakerConfig{Failures: 1})
	b := r.Breaker("read", "a:1")
	_ = call(b, true)
	until(t, "a probe goes through", func() bool { return call(b, true) == nil })
	if want := []resilience.State{resilience.Open, resilience.HalfOpen, resilience.Open}; !slices.Equal(rec.path(), want) {
		t.Errorf("changes %v, want %v", rec.path(), want)
	}
	if s := status(t, r, "read@a:1"); s.Trips != 2 {
		t.Errorf("%d trips", s.Trips)
	}
}

// TestHalfOpenLetsFewThrough however many come at that moment.
func TestHalfOpenLetsFewThrough(t *testing.T) {
	r, _ := registry(resilience.BreakerConfig{Failures: 1})
	b := r.Breaker("read", "a:1")
	_ = call(b, true)
	until(t, "the probe is due", func() bool { return status(t, r, "read@a:1").ProbeDue })
	var in atomic.Int64
	release := make(chan struct{})
	var wg, arrived sync.WaitGroup
	arrived.Add(100)
	for range 100 {
		wg.Go(func() {
			p, err := b.Acquire()
			if err == nil {
				in.Add(1)
			}
			arrived.Done()
			<-release
			if err == nil {
				in.Add(-1)
				b.Done(p, resilience.Success)
			}
		})
	}
	arrived.Wait()
	if in.Load() != 3 {
		t.Errorf("%d probes at a time, want 3", in.Load())
	}
	close(release)
	wg.Wait()
	if s := status(t, r, "read@a:1"); s.State != resilience.Closed {
		t.Errorf("after them: %+v", s)
	}
}

// TestAnswersMoveNothing: what the other side refuses, it has answered.
func TestAnswersMoveNothing(t *testing.T) {
	r, rec := registry(resilience.BreakerConfig{})
	b := r.Breaker("write", "a:1")
	for range 10_000 {
		if err := call(b, false); err != nil {
			t.Fatal(err)
		}
	}
	if s := status(t, r, "write@a:1"); len(rec.path()) != 0 || s.Failures != 0 || !s.LastFailure.IsZero() {
		t.Errorf("%v %+v", rec.path(), s)
	}
}

// TestResultsOfAnotherEraAreNoVerdict: a call from before the outage that ends
// while the breaker is half-open neither closes nor opens it, nor adds a probe.
func TestResultsOfAnotherEraAreNoVerdict(t *testing.T) {
	for _, fault := range []bool{true, false} {
		r, _ := registry(resilience.BreakerConfig{Failures: 1})
		b := r.Breaker("read", "a:1")
		var slow []resilience.Permit
		for range 10 {
			p, err := b.Acquire()
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, p)
		}
		_ = call(b, true)
		var probes []resilience.Permit
		until(t, "the first probe", func() bool {
			p, err := b.Acquire()
			if err == nil {
				probes = append(probes, p)
			}
			return err == nil
		})
		for _, p := range slow {
			b.Done(p, outcome(fault))
		}
		if s := status(t, r, "read@a:1"); s.State != resilience.HalfOpen {
			t.Fatalf("moved by results from before: %+v", s)
		}
		for range 10 {
			if p, err := b.Acquire(); err == nil {
				probes = append(probes, p)
			}
		}
		if len(probes) != 3 {
			t.Errorf("%d probes at a time, want 3", len(probes))
		}
		for _, p := range probes {
			b.Done(p, resilience.Success)
		}
		if s := status(t, r, "read@a:1"); s.State != resilience.Closed {
			t.Errorf("after good probes: %+v", s)
		}
	}
}

// TestNeutralOutcomes: while closed, neither counted as failures nor as the success
// that ends a row of them; in half-open, whose permits they hold, as faults.
func TestNeutralOutcomes(t *testing.T) {
	r, _ := registry(resilience.BreakerConfig{})
	b := r.Breaker("read", "a:1")
	neutral := func() error { return b.Guard(func() resilience.Outcome { return resilience.Neutral }) }
	for range 100 {
		if err := neutral(); err != nil {
			t.Fatal(err)
		}
	}
	if s := status(t, r, "read@a:1"); s.State != resilience.Closed || s.Failures != 0 || !s.LastFailure.IsZero() {
		t.Fatalf("after 100 neutral outcomes: %+v", s)
	}
	for i := range 5 {
		if i > 0 {
			_ = neutral()
		}
		_ = call(b, true)
	}
	if s := status(t, r, "read@a:1"); s.State != resilience.Open {
		t.Fatalf("5 failures with neutral outcomes between them: %+v", s)
	}
	until(t, "a probe goes through", func() bool { return neutral() == nil })
	if s := status(t, r, "read@a:1"); s.State != resilience.Open || s.Trips != 2 {
		t.Errorf("after a neutral probe: %+v", s)
	}
}

// TestPanicsGiveTheirPermitsBack as faults.
func TestPanicsGiveTheirPermitsBack(t *testing.T) {
	r, _ := registry(resilience.BreakerConfig{Failures: 1})
	b := r.Breaker("read", "a:1")
	boom := func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = b.Guard(func() resilience.Outcome { panic("boom") })
	}
	boom()
	if s := status(t, r, "read@a:1"); s.State != resilience.Open {
		t.Fatalf("a panic is no fault: %+v", s)
	}
	for range 3 {
		until(t, "the probe is due", func() bool { return status(t, r, "read@a:1").ProbeDue })
		boom()
	}
	until(t, "it closes once calls work", func() bool {
		_ = call(b, false)
		return status(t, r, "read@a:1").State == resilience.Closed
	})
}

func TestByRate(t *testing.T) {
	r, _ := registry(resilience.BreakerConfig{Rate: 0.5, MinCalls: 10, Window: time.Minute})
	b := r.Breaker("read", "a:1")
	for i := range 9 {
		_ = call(b, i%2 == 0)
	}
	if s := status(t, r, "read@a:1"); s.State != resilience.Closed || s.OpensAt != 0 {
		t.Fatalf("before there are enough calls: %+v", s)
	}
	_ = call(b, true)
	if s := status(t, r, "read@a:1"); s.State != resilience.Open {
		t.Errorf("6 of 10 failed: %+v", s)
	}
}

func TestForced(t *testing.T) {
	r, _ := registry(resilience.BreakerConfig{Delay: 5 * time.Millisecond})
	b := r.Breaker("read", "a:1")
	if _, err := r.Force("read@a:1", resilience.Open); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if call(b, false) == nil {
			t.Fatal("opened by hand, it let a call through")
		}
	}
	if s := status(t, r, "read@a:1"); !s.Forced || s.ProbeDue || s.State != resilience.Open {
		t.Errorf("forced: %+v", s)
	}
	if s, err := r.Force("read@a:1", resilience.HalfOpen); err != nil || s.State != resilience.HalfOpen || s.Forced {
		t.Errorf("half-open by hand: %+v %v", s, err)
	}
	if s, err := r.Force("read@a:1", resilience.Closed); err != nil || s.State != resilience.Closed || call(b, false) != nil {
		t.Errorf("closed by hand: %+v %v", s, err)
	}
	if _, err := r.Force("none", resilience.Open); !errors.Is(err, resilience.ErrNoBreaker) {
		t.Errorf("unknown: %v", err)
	}
}

func TestNodesAndClassesAreApart(t *testing.T) {
	r, _ := registry(resilience.BreakerConfig{Failures: 2})
	dead := r.Breaker("read", "a:1")
	for range 2 {
		_ = call(dead, true)
	}
	for _, b := range []*resilience.Breaker{r.Breaker("read", "b:1"), r.Breaker("write", "a:1")} {
		if err := call(b, false); err != nil {
			t.Error(err)
		}
	}
	if !r.Degraded("read") || r.Degraded("write") {
		t.Error("degraded classes are mixed up")
	}
	if r.Breaker("read", "a:1") != dead || len(r.List()) != 3 {
		t.Errorf("%d breakers", len(r.List()))
	}
	r.Drop("a:1")
	if l := r.List(); len(l) != 1 || l[0].Name != "read@b:1" {
		t.Errorf("after the node has left: %+v", l)
	}
}

func TestConcurrentUse(t *testing.T) {
	r, rec := registry(resilience.BreakerConfig{Failures: 3, Delay: time.Millisecond})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			b := r.Breaker("read", "a:1")
			for i := range 5000 {
				_ = call(b, (i/100+g)%3 == 0)
				if i%500 == 0 {
					r.List()
				}
			}
		})
	}
	wg.Wait()
	b := r.Breaker("read", "a:1")
	until(t, "it closes once calls work", func() bool {
		_ = call(b, false)
		return status(t, r, "read@a:1").State == resilience.Closed
	})
	// Each change is told once: every state but the first was entered as often as
	// it was left. In which order they are told is another matter.
	net := map[resilience.State]int{}
	for _, c := range rec.changes {
		net[c.To]++
		net[c.From]--
	}
	for st, n := range net {
		if n != 0 {
			t.Errorf("%v was entered %d times more than it was left", st, n)
		}
	}
	if len(rec.changes) == 0 {
		t.Error("nothing ever opened")
	}
}

func BenchmarkGuard(b *testing.B) {
	r, _ := registry(resilience.BreakerConfig{})
	br := r.Breaker("read", "a:1")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = br.Guard(func() resilience.Outcome { return resilience.Success })
		}
	})
}

func BenchmarkTurnedAway(b *testing.B) {
	r, _ := registry(resilience.BreakerConfig{Failures: 1, Delay: time.Hour})
	br := r.Breaker("read", "a:1")
	_ = call(br, true)
	b.ReportAllocs()
	for b.Loop() {
		if call(br, false) == nil {
			b.Fatal("let through")
		}
	}
}
