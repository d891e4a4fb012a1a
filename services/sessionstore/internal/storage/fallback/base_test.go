package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestSilentRemembersAndAnswersNothing: the store's own errors stay, and Base
// still tells what is known.
func TestSilentRemembersAndAnswersNothing(t *testing.T) {
	w := newWorld(t, fallback.Options{Silent: true})
	id := w.create(t, "ann", time.Hour)
	gone := w.create(t, "ann", time.Hour)
	if err := w.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if _, err := w.GetPolicy(t.Context(), "acme"); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	w.down.Set(storagetest.Refuses)
	w.clock.Advance(time.Second)
	for _, id := range []string{id, gone} {
		if s, err := w.Get(t.Context(), id); !errors.Is(err, storagetest.ErrDown) || s != nil {
			t.Errorf("read: %v %v, want the store's own error", s, err)
		}
	}
	if res, err := w.GetMany(t.Context(), []string{id}); !errors.Is(err, storagetest.ErrDown) {
		t.Errorf("read many: %v %v, want the store's own error", res, err)
	}
	if p, err := w.GetPolicy(t.Context(), "acme"); !errors.Is(err, storagetest.ErrDown) {
		t.Errorf("policy: %v %v, want the store's own error", p, err)
	}
	if s, age, err := w.Base(id); err != nil || s.GetId() != id || age != time.Second {
		t.Errorf("base: %v %v %v", s, age, err)
	}
	if ages := w.told(); len(ages) > 0 {
		t.Errorf("marked %v, though nothing was answered", ages)
	}
	for op, n := range w.Stats().Reads {
		if n != (fallback.Count{}) {
			t.Errorf("%s: counted %+v", op, n)
		}
	}
}

// nodeless is a store of which no node answers a read of many.
type nodeless struct{ storage.Store }

func (n *nodeless) GetMany(_ context.Context, ids []string) ([]storage.SessionResult, error) {
	return slices.Repeat([]storage.SessionResult{{Err: storagetest.ErrDown}}, len(ids)), nil
}

// TestSilentAboutEach session whose node does not answer.
func TestSilentAboutEach(t *testing.T) {
	for _, silent := range []bool{false, true} {
		inner, c := inMemory(t)
		s, err := fallback.New(&nodeless{inner}, fallback.Options{Clock: c.Now, Silent: silent})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{Store: s, clock: c}
		id := w.create(t, "ann", time.Hour)
		res, err := s.GetMany(t.Context(), []string{id})
		if err != nil || (res[0].Err == nil) == silent || (res[0].Session == nil) != silent {
			t.Errorf("silent %v: %v %v", silent, res, err)
		}
	}
}

// TestBase tells apart what is known, what is gone, and what nobody knows.
func TestBase(t *testing.T) {
	w := newWorld(t, fallback.Options{})
	id, gone, doubted := w.create(t, "ann", time.Minute), w.create(t, "ann", time.Hour), w.create(t, "ben", time.Hour)
	if err := w.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	w.down.Set(storagetest.Loses)
	if _, err := w.End(t.Context(), doubted, ""); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatal(err)
	}
	w.clock.Advance(2 * time.Minute)
	if s, age, err := w.Base(id); err != nil || s.GetPhase().String() != "EXPIRED" || age != 2*time.Minute {
		t.Errorf("known: %v %v %v, want it as of now", s, age, err)
	}
	for name, c := range map[string]struct {
		id   string
		want error
	}{
		"deleted": {gone, storage.ErrNotFound}, "perhaps ended": {doubted, storage.ErrUnavailable}, "never seen": {sessionid.New(1), storage.ErrUnavailable},
	} {
		if s, _, err := w.Base(c.id); !errors.Is(err, c.want) || s != nil {
			t.Errorf("%s: %v %v, want %v", name, s, err, c.want)
		}
	}
	w.clock.Advance(72 * time.Hour)
	if _, _, err := w.Base(id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("older than it may be: %v", err)
	}
}

// TestBytesAreThoseOfWhatIsRemembered, whatever was replaced and let go.
func TestBytesAreThoseOfWhatIsRemembered(t *testing.T) {
	w := newWorld(t, fallback.Options{MaxSessions: 10})
	id := w.create(t, "ann", time.Hour)
	one := w.Stats().Bytes
	if one < 200 || one > 2000 {
		t.Fatalf("a small session takes %d bytes", one)
	}
	for i := range 100 {
		if _, err := w.Update(t.Context(), id, storage.Update{SetLabels: map[string]string{"a": strings.Repeat("x", 10_000), "n": fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if b := w.Stats().Bytes; b < one+10_000 || b > one+11_000 {
		t.Errorf("%d bytes after 100 changes, want about 10,000 more than %d", b, one)
	}
	if err := w.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if b := w.Stats().Bytes; b >= one {
		t.Errorf("%d bytes after it was deleted, want less than %d", b, one)
	}
	for range 1000 {
		w.create(t, "ann", time.Hour)
	}
	// The cache lets go in the background.
	for end := time.Now().Add(10 * time.Second); w.Stats().Sessions > 10 || w.Stats().Bytes > 11*one; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v, want at most 10 sessions of %d bytes", w.Stats(), one)
		}
	}
}
