package fallback_test

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// history is what one replica has done and seen of each session.
type history struct {
	*rapid.T
	w    *world
	ids  []string
	over map[string]bool  // ended, deleted or revoked here, or perhaps
	seen map[string]int64 // the highest revision that was returned here
}

// TestOutageNeverTurnsTimeBack: whatever this replica and another one have done
// before, in an outage this one answers nothing as live that it has ended,
// nothing older than what it has answered before, and never that a session is
// not there which is.
func TestOutageNeverTurnsTimeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		opts := fallback.Options{MaxSessions: rapid.SampledFrom([]int{3, 1000}).Draw(t, "most")}
		h := &history{T: t, w: newWorld(t, fallback.WithStripes(opts, rapid.SampledFrom([]int{1, 4, 4096}).Draw(t, "stripes"))), over: map[string]bool{}, seen: map[string]int64{}}
		for range 40 {
			rapid.SampledFrom([]func(){h.create, h.create, h.read, h.read, h.elsewhere, h.elsewhere, h.end, h.revoke, h.pass}).Draw(t, "op")()
			h.outage()
		}
	})
}

func (h *history) pick() string {
	if len(h.ids) == 0 {
		h.create()
	}
	return rapid.SampledFrom(h.ids).Draw(h.T, "id")
}

func (h *history) user() string {
	return rapid.SampledFrom([]string{"", "ann", "bob"}).Draw(h.T, "user")
}

func (h *history) create() {
	in := h.w.fresh(h.user(), time.Duration(rapid.IntRange(2, 60).Draw(h.T, "base"))*time.Second)
	s, _, err := h.w.Create(h.Context(), in, "")
	if err != nil {
		h.Fatal(err)
	}
	h.ids = append(h.ids, s.GetId())
	h.returned(s)
}

func (h *history) returned(s *sessionv1.Session) {
	h.seen[s.GetId()] = max(h.seen[s.GetId()], s.GetRevision())
	if p := s.GetPhase(); p == sessionv1.Session_ENDED {
		h.over[s.GetId()] = true
	}
}

func (h *history) read() {
	if s, err := h.w.Get(h.Context(), h.pick()); err == nil {
		h.returned(s)
	}
}

// elsewhere is what another replica does, which this one is not told of.
func (h *history) elsewhere() {
	id := h.pick()
	var err error
	switch rapid.IntRange(0, 3).Draw(h.T, "by the other") {
	case 0:
		_, err = h.w.inner.Update(h.Context(), id, storage.Update{SetLabels: map[string]string{"a": "b"}})
	case 1:
		_, err = h.w.inner.Extend(h.Context(), []storage.Activity{{SessionID: id, Kind: "input"}})
	case 2:
		_, err = h.w.inner.End(h.Context(), id, "done")
	default:
		err = h.w.inner.Delete(h.Context(), id)
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrEnded) {
		h.Fatal(err)
	}
}

// fault makes the next call fail, or not.
func (h *history) fault() (heal func()) {
	h.w.down.Set(rapid.SampledFrom([]storagetest.Fault{storagetest.Works, storagetest.Works, storagetest.Loses}).Draw(h.T, "fault"))
	return func() { h.w.down.Set(storagetest.Works) }
}

func (h *history) end() {
	id := h.pick()
	defer h.fault()()
	var err error
	if rapid.Bool().Draw(h.T, "delete") {
		err = h.w.Delete(h.Context(), id)
	} else {
		_, err = h.w.End(h.Context(), id, "done")
	}
	if err == nil || errors.Is(err, storage.ErrUnavailable) {
		h.over[id] = true
	}
}

func (h *history) revoke() {
	user := rapid.SampledFrom([]string{"ann", "bob"}).Draw(h.T, "whose")
	spared := h.pick()
	defer h.fault()()
	before := map[string]*sessionv1.Session{}
	for _, id := range h.ids {
		if s, err := h.w.inner.Get(h.Context(), id); err == nil {
			before[id] = s
		}
	}
	if _, err := h.w.RevokeUser(h.Context(), "acme", user, []string{spared}, "stolen"); err != nil && !errors.Is(err, storage.ErrUnavailable) {
		h.Fatal(err)
	}
	for id, s := range before {
		if s.GetUser() == user && id != spared {
			h.over[id] = true
		}
	}
}

func (h *history) pass() {
	h.w.clock.Advance(time.Duration(rapid.IntRange(100, 30_000).Draw(h.T, "ms")) * time.Millisecond)
	if _, err := h.w.inner.Sweep(h.Context()); err != nil {
		h.Fatal(err)
	}
}

// outage asks for everything while the store is away.
func (h *history) outage() {
	h.w.down.Set(storagetest.Refuses)
	defer h.w.down.Set(storagetest.Works)
	for _, id := range h.ids {
		s, err := h.w.Get(h.Context(), id)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			if there, err := h.w.inner.Get(h.Context(), id); err == nil {
				h.Fatalf("not found, but it is there: %v", there)
			}
		case err != nil:
			if !errors.Is(err, storage.ErrUnavailable) {
				h.Fatal(err)
			}
		case h.over[id] && s.GetPhase() != sessionv1.Session_ENDED && s.GetPhase() != sessionv1.Session_EXPIRED:
			h.Fatalf("it is over, and answered as %v", s)
		case s.GetRevision() < h.seen[id]:
			h.Fatalf("answered revision %d, after %d: %v", s.GetRevision(), h.seen[id], s)
		case !s.GetExpireTime().AsTime().After(h.w.clock.Now()) && s.GetPhase() != sessionv1.Session_ENDED && s.GetPhase() != sessionv1.Session_EXPIRED:
			h.Fatalf("past its deadline, and answered as %v", s)
		}
	}
}
