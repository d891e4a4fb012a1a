package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestSeenOverIsNotUndoneByALateRead: another replica has ended or deleted a
// session, this one is told so by a write, and the answer to a read from before
// that comes last.
func TestSeenOverIsNotUndoneByALateRead(t *testing.T) {
	event := []*sessionv1.Event{{Id: "e", Type: "input:text"}}
	calls := map[string]func(s *fallback.Store, id string){
		"append": func(s *fallback.Store, id string) { _, _ = s.Append(context.Background(), id, event) },
		"update": func(s *fallback.Store, id string) { _, _ = s.Update(context.Background(), id, storage.Update{}) },
		"extend": func(s *fallback.Store, id string) {
			_, _ = s.Extend(context.Background(), []storage.Activity{{SessionID: id}})
		},
	}
	for name, call := range calls {
		for _, known := range []bool{true, false} {
			for _, deleted := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, known %v, deleted %v", name, known, deleted), func(t *testing.T) {
					inner, c := inMemory(t)
					slow := &late{Store: inner}
					down := &storagetest.Faulty{Store: slow}
					s, err := fallback.New(down, fallback.Options{Clock: c.Now})
					if err != nil {
						t.Fatal(err)
					}
					maker := storage.Store(inner)
					if known {
						maker = s
					}
					made, _, err := maker.Create(t.Context(), (&world{clock: c}).fresh("ann", time.Hour), "")
					if err != nil {
						t.Fatal(err)
					}
					id := made.GetId()
					c.Advance(2 * time.Second)
					asked, answer := make(chan struct{}), make(chan struct{})
					slow.asked, slow.answer = asked, answer
					var reading sync.WaitGroup
					reading.Go(func() { _, _ = s.Get(context.Background(), id) })
					<-asked
					if deleted {
						err = inner.Delete(t.Context(), id)
					} else {
						_, err = inner.End(t.Context(), id, "done")
					}
					if err != nil {
						t.Fatal(err)
					}
					call(s, id)
					close(answer)
					reading.Wait()
					down.Set(storagetest.Refuses)
					if got, err := s.Get(t.Context(), id); err == nil {
						t.Errorf("it reads as %v", got.GetPhase())
					}
				})
			}
		}
	}
}

// TestShedMayHaveBeenApplied: a try whose answer was lost may be followed by
// one that is turned away, and that is the error that comes back.
func TestShedMayHaveBeenApplied(t *testing.T) {
	for name, call := range map[string]func(s *fallback.Store, id string) error{
		"end": func(s *fallback.Store, id string) error {
			_, err := s.End(context.Background(), id, "done")
			return err
		},
		"delete": func(s *fallback.Store, id string) error { return s.Delete(context.Background(), id) },
		"revoke": func(s *fallback.Store, _ string) error {
			_, err := s.RevokeUser(context.Background(), "acme", "ann", nil, "stolen")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inner, c := inMemory(t)
			s, err := fallback.New(&shed{storagetest.Faulty{Store: inner}}, fallback.Options{Clock: c.Now})
			if err != nil {
				t.Fatal(err)
			}
			made, _, err := s.Create(t.Context(), (&world{clock: c}).fresh("ann", time.Hour), "")
			if err != nil {
				t.Fatal(err)
			}
			if err := call(s, made.GetId()); err == nil {
				t.Fatal("the call was not shed")
			}
			if got, err := s.Get(t.Context(), made.GetId()); err == nil {
				t.Errorf("it reads as %v", got.GetPhase())
			}
		})
	}
}

// shed applies what ends sessions, loses the answer and turns the next try
// away. It answers no reads.
type shed struct{ storagetest.Faulty }

func (s *shed) Get(context.Context, string) (*sessionv1.Session, error) {
	return nil, storagetest.ErrDown
}

func (s *shed) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	_, _ = s.Store.End(ctx, id, reason)
	return nil, storage.ErrExhausted
}

func (s *shed) Delete(ctx context.Context, id string) error {
	_ = s.Store.Delete(ctx, id)
	return storage.ErrExhausted
}

func (s *shed) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	_, _ = s.Store.RevokeUser(ctx, project, user, except, reason)
	return 0, storage.ErrExhausted
}

// TestAnAbsenceIsAsOldAsItWasSeen, and of an id that was never known here
// nobody says that it is not there: it may have been made elsewhere since.
func TestAnAbsenceIsAsOldAsItWasSeen(t *testing.T) {
	w := newWorld(t, fallback.Options{})
	unread, _, err := w.inner.Create(t.Context(), w.fresh("ann", time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), unread.GetId()); err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Second)
	w.down.Set(storagetest.Refuses)
	if _, err := w.Get(t.Context(), unread.GetId()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if ages := w.told(); len(ages) != 1 || ages[0] != time.Second {
		t.Errorf("marked %v, want 1 s", ages)
	}
	w.down.Set(storagetest.Works)
	later := w.fresh("ann", time.Hour)
	_ = w.Delete(t.Context(), later.GetId())
	if _, _, err := w.inner.Create(t.Context(), later, ""); err != nil {
		t.Fatal(err)
	}
	w.down.Set(storagetest.Refuses)
	if _, err := w.Get(t.Context(), later.GetId()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("made elsewhere since: %v", err)
	}
}
