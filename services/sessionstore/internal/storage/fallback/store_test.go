package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TB is what a test or a property needs to open stores.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

func inMemory(t TB) (*memory.Store, *storagetest.Clock) {
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

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		inner, c := inMemory(t)
		s, err := fallback.New(inner, fallback.Options{Clock: c.Now})
		if err != nil {
			t.Fatal(err)
		}
		return storagetest.Fixture{
			Store: s, Unit: time.Second, Now: c.Now, Advance: c.Advance,
			Entries: func() int { return int(inner.Status(context.Background()).Entries) },
		}
	}, nil)
}

// world is a store that can go away, under a fallback that says what it made
// up for.
type world struct {
	*fallback.Store
	down  *storagetest.Faulty
	inner *memory.Store
	clock *storagetest.Clock

	mu    sync.Mutex
	stale []time.Duration
}

func newWorld(t TB, opts fallback.Options) *world {
	t.Helper()
	inner, c := inMemory(t)
	w := &world{down: &storagetest.Faulty{Store: inner}, inner: inner, clock: c}
	opts.Clock = c.Now
	opts.Stale = func(_ context.Context, age time.Duration) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stale = append(w.stale, age)
	}
	var err error
	if w.Store, err = fallback.New(w.down, opts); err != nil {
		t.Fatal(err)
	}
	return w
}

// told returns the ages that were told of since the last time.
func (w *world) told() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.stale
	w.stale = nil
	return out
}

func (w *world) fresh(user string, base time.Duration) *sessionv1.Session {
	now := w.clock.Now().UnixMilli()
	p := lifetime.Resolve(&sessionv1.TTLPolicy{BaseTtl: durationpb.New(base), ExtendBelow: durationpb.New(time.Second)}, lifetime.DefaultPolicy())
	return &sessionv1.Session{
		Id: sessionid.New(sessionid.ShardOf("acme", user, "", storagetest.Shards)), User: user, Project: "acme", Revision: 1, TtlPolicy: p,
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now), ExpireTime: lifetime.Time(lifetime.Deadline(now, p)),
	}
}

func (w *world) create(t *testing.T, user string, base time.Duration) string {
	t.Helper()
	s, _, err := w.Create(t.Context(), w.fresh(user, base), "")
	if err != nil {
		t.Fatal(err)
	}
	return s.GetId()
}

func TestAnswersWhatItKnowsAndSaysHowOldItIs(t *testing.T) {
	w := newWorld(t, fallback.Options{})
	id := w.create(t, "ann", time.Minute)
	if _, err := w.Get(t.Context(), id); err != nil || w.told() != nil {
		t.Fatalf("while the store answers: %v, marked %v", err, w.told())
	}
	w.down.Set(storagetest.Refuses)
	w.clock.Advance(20 * time.Second)
	s, err := w.Get(t.Context(), id)
	if err != nil || s.GetId() != id || s.GetPhase() != sessionv1.Session_ACTIVE {
		t.Fatalf("known: %v %v", s, err)
	}
	if ages := w.told(); len(ages) != 1 || ages[0] != 20*time.Second {
		t.Errorf("marked %v, want 20 s", ages)
	}
	w.clock.Advance(40 * time.Second)
	if s, err := w.Get(t.Context(), id); err != nil || s.GetPhase() != sessionv1.Session_EXPIRED {
		t.Errorf("past its deadline: %v %v", s, err)
	}
	// Not knowing is not ErrNotFound, also where the id cannot be one.
	for _, id := range []string{sessionid.New(1), "x"} {
		if _, err := w.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("unknown %q: %v", id, err)
		}
	}
	w.told()
	res, err := w.GetMany(t.Context(), []string{id, sessionid.New(1)})
	if err != nil || res[0].Err != nil || res[0].Session.GetId() != id || !errors.Is(res[1].Err, storage.ErrUnavailable) {
		t.Errorf("many: %v %v", res, err)
	}
	if ages := w.told(); len(ages) != 1 || ages[0] != time.Minute {
		t.Errorf("many: marked %v, want once, 1 m", ages)
	}
	if _, err := w.List(t.Context(), storage.ListQuery{Limit: 10}); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a list: %v", err)
	}
	if st := w.Stats(); st.Reads["get"] != (fallback.Count{Answers: 2, Misses: 2}) || st.Reads["get_many"] != (fallback.Count{Answers: 1, Misses: 1}) || st.Sessions != 1 {
		t.Errorf("stats %+v", st)
	}
	w.clock.Advance(72 * time.Hour)
	if _, err := w.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("older than it may be: %v", err)
	}
}

// TestWhatIsOverStaysOver whichever way it ended, and whether or not the store
// could say so.
func TestWhatIsOverStaysOver(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(w *world, id string) error
		want map[storagetest.Fault]error // by what the store does to the call
	}{
		"ended":   {func(w *world, id string) error { _, err := w.End(context.Background(), id, "done"); return err }, map[storagetest.Fault]error{storagetest.Works: nil, storagetest.Loses: storage.ErrUnavailable}},
		"deleted": {func(w *world, id string) error { return w.Delete(context.Background(), id) }, map[storagetest.Fault]error{storagetest.Works: storage.ErrNotFound, storagetest.Loses: storage.ErrUnavailable}},
		"revoked": {func(w *world, _ string) error {
			_, err := w.RevokeUser(context.Background(), "acme", "ann", nil, "stolen")
			return err
		}, map[storagetest.Fault]error{storagetest.Works: nil, storagetest.Loses: storage.ErrUnavailable}},
		"ended elsewhere": {func(w *world, id string) error {
			if _, err := w.inner.End(context.Background(), id, "done"); err != nil {
				return err
			}
			_, err := w.Append(context.Background(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
			if errors.Is(err, storage.ErrEnded) {
				return nil
			}
			return fmt.Errorf("appended to a session that is over: %w", err)
		}, map[storagetest.Fault]error{storagetest.Works: storage.ErrUnavailable}},
	} {
		for mode, want := range c.want {
			t.Run(fmt.Sprint(name, " ", mode), func(t *testing.T) {
				w := newWorld(t, fallback.Options{})
				id := w.create(t, "ann", time.Hour)
				w.down.Set(mode)
				if err := c.end(w, id); (err == nil) != (mode == storagetest.Works) {
					t.Fatal(err)
				}
				w.down.Set(storagetest.Refuses)
				s, err := w.Get(t.Context(), id)
				if !errors.Is(err, want) || err == nil && s.GetPhase() != sessionv1.Session_ENDED {
					t.Errorf("%v %v, want %v", s, err, want)
				}
			})
		}
	}
}

func TestRevokingSparesTheException(t *testing.T) {
	w := newWorld(t, fallback.Options{})
	kept, gone, other := w.create(t, "ann", time.Hour), w.create(t, "ann", time.Hour), w.create(t, "bob", time.Hour)
	if n, err := w.RevokeUser(t.Context(), "acme", "ann", []string{kept}, "stolen"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	w.down.Set(storagetest.Refuses)
	for id, want := range map[string]sessionv1.Session_Phase{kept: sessionv1.Session_ACTIVE, gone: sessionv1.Session_ENDED, other: sessionv1.Session_ACTIVE} {
		if s, err := w.Get(t.Context(), id); err != nil || s.GetPhase() != want || (want == sessionv1.Session_ENDED && s.GetEndReason() != "stolen") {
			t.Errorf("%v %v, want %v", s, err, want)
		}
	}
}

// late is a store whose next Get answers only when it may.
type late struct {
	storage.Store
	asked, answer chan struct{}
}

func (l *late) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	s, err := l.Store.Get(ctx, id)
	if l.asked != nil {
		close(l.asked)
		l.asked = nil
		<-l.answer
	}
	return s, err
}

// TestLateAnswersAreNoNews: a read from before the end that arrives after it
// does not bring the session back.
func TestLateAnswersAreNoNews(t *testing.T) {
	inner, c := inMemory(t)
	slow := &late{Store: inner}
	down := &storagetest.Faulty{Store: slow}
	s, err := fallback.New(down, fallback.Options{Clock: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{clock: c}
	made, _, err := s.Create(t.Context(), w.fresh("ann", time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}), make(chan struct{})
	slow.asked, slow.answer = asked, answer
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = s.Get(context.Background(), made.GetId()) })
	<-asked
	if err := s.Delete(t.Context(), made.GetId()); err != nil {
		t.Fatal(err)
	}
	close(answer)
	reading.Wait()
	down.Set(storagetest.Refuses)
	if got, err := s.Get(t.Context(), made.GetId()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("it came back: %v %v", got, err)
	}
}

func TestPolicies(t *testing.T) {
	w := newWorld(t, fallback.Options{})
	p := &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Hour)}
	if _, err := w.SetPolicy(t.Context(), "acme", p); err != nil {
		t.Fatal(err)
	}
	if _, err := w.GetPolicy(t.Context(), "none"); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	w.down.Set(storagetest.Refuses)
	w.clock.Advance(time.Second)
	if got, err := w.GetPolicy(t.Context(), "acme"); err != nil || got.GetPolicy().GetBaseTtl().AsDuration() != time.Hour {
		t.Errorf("known: %v %v", got, err)
	}
	if _, err := w.GetPolicy(t.Context(), "none"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("known to have none: %v", err)
	}
	if _, err := w.GetPolicy(t.Context(), "other"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("unknown: %v", err)
	}
	if ages := w.told(); len(ages) != 2 || ages[0] != time.Second {
		t.Errorf("marked %v, want 1 s twice", ages)
	}
	if err := w.DeletePolicy(t.Context(), "acme"); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := w.GetPolicy(t.Context(), "acme"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("perhaps deleted: %v", err)
	}
}

// TestBounded: what does not fit leaves, and its user's list with it.
func TestBounded(t *testing.T) {
	w := newWorld(t, fallback.Options{MaxSessions: 10, MaxBytes: 1 << 20})
	var ids []string
	for range 1000 {
		ids = append(ids, w.create(t, "ann", time.Hour))
	}
	// The cache lets go in the background.
	for end := time.Now().Add(10 * time.Second); w.Stats().Sessions > 10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sessions are kept, want at most 10", w.Stats().Sessions)
		}
	}
	w.down.Set(storagetest.Refuses)
	known := 0
	for _, id := range ids {
		if _, err := w.Get(t.Context(), id); err == nil {
			known++
		}
	}
	if known == 0 || known > 10 {
		t.Errorf("%d of 1000 are known, want 1 to 10", known)
	}
}

func TestRefusesBadOptions(t *testing.T) {
	for name, o := range map[string]fallback.Options{
		"no clock": {}, "negative": {Clock: time.Now, MaxSessions: -1},
	} {
		if _, err := fallback.New(nil, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
