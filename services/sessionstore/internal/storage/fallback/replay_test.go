package fallback_test

import (
	"errors"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestReplayMakesWhatIsKnownOld: no answer in the next outage is from before
// what was replayed, whatever became of it.
func TestReplayMakesWhatIsKnownOld(t *testing.T) {
	w := newWorld(t, fallback.Options{})
	id := w.create(t, "ann", time.Minute)
	for _, c := range []struct {
		name string
		u    storage.Update
		want error
	}{
		{"applied", storage.Update{WriteID: "w", SetLabels: map[string]string{"a": "b"}}, nil},
		{"refused", storage.Update{WriteID: "x", IfRevision: 1}, storage.ErrConflict},
	} {
		if _, err := w.Get(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := w.Replay(t.Context(), storage.Write{SessionID: id, At: w.clock.Now(), Update: &c.u}); !errors.Is(err, c.want) {
			t.Fatalf("%s: %v", c.name, err)
		}
		w.down.Set(storagetest.Refuses)
		if got, err := w.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v %v", c.name, got, err)
		}
		w.down.Set(storagetest.Works)
	}
	if got, err := w.Get(t.Context(), id); err != nil || got.GetLabels()["a"] != "b" {
		t.Fatalf("once it is back: %v %v", got, err)
	}
	w.down.Set(storagetest.Refuses)
	if got, err := w.Get(t.Context(), id); err != nil || got.GetLabels()["a"] != "b" {
		t.Errorf("what was read since: %v %v", got, err)
	}
	w.down.Set(storagetest.Works)
	if err := w.Replay(t.Context(), storage.Write{SessionID: id, At: w.clock.Now(), Delete: true}); err != nil {
		t.Fatal(err)
	}
	w.down.Set(storagetest.Refuses)
	if got, err := w.Get(t.Context(), id); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("deleted: %v %v", got, err)
	}
	w.down.Set(storagetest.Works)
	if err := w.Hold(t.Context(), "me", w.clock.Now()); err != nil {
		t.Error(err)
	}
}
