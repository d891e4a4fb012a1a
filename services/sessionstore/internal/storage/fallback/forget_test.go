package fallback_test

import (
	"errors"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestForget: after a loss of the store's data, nothing that was remembered of live
// sessions and policies is returned, until it was read again; what is over stays so.
func TestForget(t *testing.T) {
	s := newWorld(t, fallback.Options{Fresh: time.Second})
	ctx := t.Context()
	ids := map[string]string{}
	for _, kind := range []string{"live", "ended", "deleted"} {
		ids[kind] = s.create(t, "ann", time.Minute)
	}
	_, err1 := s.End(ctx, ids["ended"], "done")
	_, err2 := s.SetPolicy(ctx, "acme", &sessionv1.TTLPolicy{})
	if err := errors.Join(err1, err2, s.Delete(ctx, ids["deleted"])); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Base(ids["live"]); err != nil {
		t.Fatal("nothing is remembered:", err)
	}
	s.Forget()
	if _, _, err := s.Base(ids["live"]); !errors.Is(err, storage.ErrUnavailable) {
		t.Error("the live session:", err)
	}
	if x, _, err := s.Base(ids["ended"]); err != nil || x.GetPhase() != sessionv1.Session_ENDED {
		t.Errorf("the ended session: %v %v", x.GetPhase(), err)
	}
	if _, _, err := s.Base(ids["deleted"]); !errors.Is(err, storage.ErrNotFound) {
		t.Error("the deleted session:", err)
	}
	s.down.Set(storagetest.Refuses)
	if _, err := s.GetPolicy(ctx, "acme"); !errors.Is(err, storage.ErrUnavailable) {
		t.Error("the policy:", err)
	}
	if _, err := s.Get(ctx, ids["live"]); !errors.Is(err, storage.ErrUnavailable) {
		t.Error("the live session in an outage:", err)
	}
	s.down.Set(storagetest.Works)
	before := s.Stats().Hits
	if _, err := s.Get(ctx, ids["live"]); err != nil || s.Stats().Hits != before {
		t.Error("it was not asked for:", err)
	}
	if _, _, err := s.Base(ids["live"]); err != nil {
		t.Error("after it was read again:", err)
	}
}
