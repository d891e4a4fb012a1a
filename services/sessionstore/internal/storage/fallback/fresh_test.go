package fallback_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// asked counts the reads that reach a store.
type asked struct {
	storage.Store
	n atomic.Int64
}

func (a *asked) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	a.n.Add(1)
	return a.Store.Get(ctx, id)
}

// TestFresh: a session read not long ago is not asked for again, unless
// something may have changed it.
func TestFresh(t *testing.T) {
	ctx := t.Context()
	update := storage.Update{SetLabels: map[string]string{"a": "b"}}
	labelled := func(s *sessionv1.Session, err error) bool { return err == nil && s.GetLabels()["a"] == "b" }
	for name, c := range map[string]struct {
		change func(s *fallback.Store, inner storage.Store, down *storagetest.Faulty, id string)
		asks   bool
		// seen is what a read must show then; anything where nil.
		seen func(s *sessionv1.Session, err error) bool
	}{
		"nothing": {func(*fallback.Store, storage.Store, *storagetest.Faulty, string) {}, false, nil},
		"own update": {func(s *fallback.Store, _ storage.Store, _ *storagetest.Faulty, id string) {
			_, _ = s.Update(ctx, id, update)
		}, false, labelled},
		"own update whose answer is lost": {func(s *fallback.Store, _ storage.Store, down *storagetest.Faulty, id string) {
			down.Set(storagetest.Loses)
			_, _ = s.Update(ctx, id, update)
			down.Set(storagetest.Works)
		}, true, labelled},
		"own activity": {func(s *fallback.Store, _ storage.Store, _ *storagetest.Faulty, id string) {
			_, _ = s.Extend(ctx, []storage.Activity{{SessionID: id}})
		}, true, nil},
		"own end": {func(s *fallback.Store, _ storage.Store, _ *storagetest.Faulty, id string) {
			_, _ = s.End(ctx, id, "done")
		}, false, func(s *sessionv1.Session, _ error) bool { return s.GetPhase() == sessionv1.Session_ENDED }},
		"own end whose answer is lost": {func(s *fallback.Store, _ storage.Store, down *storagetest.Faulty, id string) {
			down.Set(storagetest.Loses)
			_, _ = s.End(ctx, id, "done")
			down.Set(storagetest.Works)
		}, true, func(s *sessionv1.Session, _ error) bool { return s.GetPhase() == sessionv1.Session_ENDED }},
		"own delete": {func(s *fallback.Store, _ storage.Store, _ *storagetest.Faulty, id string) {
			_ = s.Delete(ctx, id)
		}, true, func(_ *sessionv1.Session, err error) bool { return errors.Is(err, storage.ErrNotFound) }},
		"own revocation": {func(s *fallback.Store, _ storage.Store, _ *storagetest.Faulty, _ string) {
			_, _ = s.RevokeUser(ctx, "acme", "ann", nil, "out")
		}, true, func(s *sessionv1.Session, _ error) bool { return s.GetPhase() == sessionv1.Session_ENDED }},
		"another's update": {func(_ *fallback.Store, inner storage.Store, _ *storagetest.Faulty, id string) {
			_, _ = inner.Update(ctx, id, update)
		}, false, nil},
		"another's end, heard of": {func(s *fallback.Store, inner storage.Store, _ *storagetest.Faulty, id string) {
			_, _ = inner.End(ctx, id, "done")
			s.Outdated(id)
		}, true, func(s *sessionv1.Session, _ error) bool { return s.GetPhase() == sessionv1.Session_ENDED }},
	} {
		t.Run(name, func(t *testing.T) {
			inner, clock := inMemory(t)
			counted := &asked{Store: inner}
			down := &storagetest.Faulty{Store: counted}
			s, err := fallback.New(down, fallback.Options{Clock: clock.Now, Fresh: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			made, _, err := s.Create(ctx, (&world{clock: clock}).fresh("ann", time.Hour), "")
			if err != nil {
				t.Fatal(err)
			}
			clock.Advance(500 * time.Millisecond)
			c.change(s, inner, down, made.GetId())
			before := counted.n.Load()
			got, err := s.Get(ctx, made.GetId())
			if asks := counted.n.Load() > before; asks != c.asks {
				t.Errorf("asked %v, want %v", asks, c.asks)
			}
			if c.seen != nil && !c.seen(got, err) {
				t.Errorf("it reads as %v, %v", got, err)
			}
			// However it was changed, the truth is read once the time is over.
			clock.Advance(time.Second)
			before = counted.n.Load()
			got, err = s.Get(ctx, made.GetId())
			want, werr := inner.Get(ctx, made.GetId())
			if counted.n.Load() == before || got.GetRevision() != want.GetRevision() || !errors.Is(err, werr) {
				t.Errorf("later it reads as %v, %v; want %v, %v", got, err, want, werr)
			}
		})
	}
}

// TestFreshUntilTheDeadline: others may have moved a deadline that has passed.
func TestFreshUntilTheDeadline(t *testing.T) {
	ctx := t.Context()
	inner, clock := inMemory(t)
	s, err := fallback.New(inner, fallback.Options{Clock: clock.Now, Fresh: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	made, _, err := s.Create(ctx, (&world{clock: clock}).fresh("ann", 500*time.Millisecond), "")
	if err != nil {
		t.Fatal(err)
	}
	clock.Advance(400 * time.Millisecond)
	if r, err := inner.Extend(ctx, []storage.Activity{{SessionID: made.GetId()}}); err != nil || r[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		t.Fatal(r, err)
	}
	clock.Advance(200 * time.Millisecond)
	if got, err := s.Get(ctx, made.GetId()); err != nil || got.GetPhase() == sessionv1.Session_EXPIRED {
		t.Errorf("it reads as %v, %v", got, err)
	}
}
