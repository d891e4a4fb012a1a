package memory_test

import (
	"fmt"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestSweepOfMany takes more sessions than one batch through their whole life,
// each step of it exactly once, and leaves nothing behind. A restart between
// two steps changes nothing.
func TestSweepOfMany(t *testing.T) {
	const many = 1200
	c, dir := storagetest.NewClock(), t.TempDir()
	o := options(c, dir)
	o.Shards = 1
	s := open(t, o)
	policy := lifetime.DefaultPolicy()
	for n := range many {
		x := session(c.Now(), fmt.Sprint("u", n))
		x.Id = sessionid.New(0) // the only shard
		if _, _, err := s.Create(t.Context(), x, ""); err != nil {
			t.Fatal(err)
		}
	}
	sweep := func(what string, want storage.SweepResult) {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, o)
		for _, want := range []storage.SweepResult{want, {}} {
			got, err := s.Sweep(t.Context())
			got.Trimmed = 0
			if err != nil || got != want {
				t.Errorf("%s: got %+v, want %+v: %v", what, got, want, err)
			}
		}
	}
	sweep("at first", storage.SweepResult{})
	c.Advance(policy.GetBaseTtl().AsDuration() - policy.GetExtendBelow().AsDuration())
	sweep("exactly at the threshold", storage.SweepResult{})
	c.Advance(time.Millisecond)
	sweep("below the threshold", storage.SweepResult{Warned: many})
	c.Advance(policy.GetExtendBelow().AsDuration() - 2*time.Millisecond)
	sweep("just before the deadline", storage.SweepResult{})
	c.Advance(time.Millisecond)
	sweep("at the deadline", storage.SweepResult{Expired: many})
	page, err := s.List(t.Context(), storage.ListQuery{Phase: sessionv1.Session_EXPIRED, Limit: 1000})
	if err != nil || len(page.Sessions) == 0 {
		t.Errorf("expired sessions cannot be read: %v", err)
	}
	c.Advance(o.Retention - time.Millisecond)
	sweep("under retention", storage.SweepResult{})
	c.Advance(time.Millisecond)
	sweep("after retention", storage.SweepResult{Purged: many})
	if n := s.Status(t.Context()).Entries; n != 0 {
		t.Errorf("%d entries left behind", n)
	}
}
