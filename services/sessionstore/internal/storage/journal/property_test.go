package journal

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// told is what the caller of one session was told, and what may be true beside:
// a write that failed may have been applied.
type told struct {
	events []string
	// label is the last value acknowledged; maybe are those written after it
	// with an unknown outcome.
	label       string
	maybe       []string
	ended, gone bool
	// over is when it may be ended or gone, which the caller was not told.
	over bool
}

// TestNothingAcknowledgedIsLost: whatever fails, and however often the process
// is killed, everything that was acknowledged is there afterwards, in order, and
// once.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		root := t.TempDir() // another one each time
		t := rt
		r := newRig(t, filepath.Join(root, "0"))
		defer r.close()
		m := map[string]*told{}
		var ids []string
		n := 0
		ctx := context.Background()
		pick := func(t *rapid.T) (string, *told) {
			if len(ids) == 0 {
				t.Skip("no session yet")
			}
			id := rapid.SampledFrom(ids).Draw(t, "session")
			return id, m[id]
		}
		faults := rapid.SampledFrom([]storagetest.Fault{storagetest.Works, storagetest.Refuses, storagetest.Loses})
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				s, _, err := r.Create(ctx, r.fresh(fmt.Sprint("u", n%3)), "")
				if n++; err != nil {
					t.Fatalf("create: %v", err) // nothing has to be known for it
				}
				ids = append(ids, s.GetId())
				m[s.GetId()] = &told{}
			},
			"append": func(t *rapid.T) {
				id, k := pick(t)
				n++
				e := fmt.Sprint("e", n)
				_, err := r.Append(ctx, id, []*sessionv1.Event{event(e)})
				if err == nil {
					k.events = append(k.events, e)
				}
				k.check(t, "append", err)
			},
			"update": func(t *rapid.T) {
				id, k := pick(t)
				n++
				v := fmt.Sprint(n)
				u := label("n", v)
				if rapid.Bool().Draw(t, "with revision") {
					if s, err := r.Get(ctx, id); err == nil {
						u.IfRevision = s.GetRevision()
					}
				}
				_, err := r.Update(ctx, id, u)
				switch {
				case err == nil:
					k.label, k.maybe = v, nil
				case errors.Is(err, storage.ErrUnavailable):
					k.maybe = append(k.maybe, v)
				}
				k.check(t, "update", err)
			},
			"extend": func(t *rapid.T) {
				id, k := pick(t)
				res, err := r.Extend(ctx, []storage.Activity{{SessionID: id, Kind: "input"}})
				if err != nil {
					t.Fatalf("extend: %v", err)
				}
				if got := res[0].Response.GetOutcome(); got == sessionv1.ExtendTTLResponse_NOT_FOUND && !k.gone && !k.over {
					t.Fatalf("not found, and never deleted")
				}
			},
			"end": func(t *rapid.T) {
				id, k := pick(t)
				_, err := r.End(ctx, id, "done")
				k.ended = k.ended || err == nil
				k.over = k.over || errors.Is(err, storage.ErrUnavailable)
				k.check(t, "end", err)
			},
			"delete": func(t *rapid.T) {
				id, k := pick(t)
				err := r.Delete(ctx, id)
				k.gone = k.gone || err == nil
				k.over = k.over || errors.Is(err, storage.ErrUnavailable)
				k.check(t, "delete", err)
			},
			"get": func(t *rapid.T) {
				id, k := pick(t)
				k.reads(t, r, id)
			},
			"fault": func(t *rapid.T) { r.below.Set(faults.Draw(t, "fault")) },
			"time":  func(*rapid.T) { r.clock.Advance(time.Second) },
			"crash": func(t *rapid.T) {
				n++
				r.crash(filepath.Join(root, fmt.Sprint(n)), faults.Draw(t, "fault"))
				for id, k := range m {
					k.reads(t, r, id)
				}
			},
			"drain": func(*rapid.T) { r.drained() },
		})
		r.drained()
		for id, k := range m {
			r.verify(t, id, k)
		}
		if n := r.letters.count(); n > 0 {
			page, _ := r.DeadLetters(100, "")
			t.Fatalf("%d dead letters, though nobody else writes: %+v", n, page)
		}
	})
}

// check says what errors may be.
func (k *told) check(t *rapid.T, op string, err error) {
	switch {
	case err == nil, errors.Is(err, storage.ErrUnavailable):
	case errors.Is(err, storage.ErrNotFound) && (k.gone || k.over):
	case errors.Is(err, storage.ErrEnded) && (k.ended || k.over):
	default:
		t.Fatalf("%s: %v for %+v", op, err, k)
	}
}

// reads compares how a session reads with what was told.
func (k *told) reads(t *rapid.T, r *rig, id string) {
	s, err := r.Get(context.Background(), id)
	k.check(t, "get", err)
	if err != nil {
		return
	}
	if k.gone {
		t.Fatalf("a deleted session reads as %v", s)
	}
	k.matches(t, s)
}

// matches compares a session with what was told of it.
func (k *told) matches(t T, s *sessionv1.Session) {
	t.Helper()
	if v := s.GetLabels()["n"]; v != k.label && !slices.Contains(k.maybe, v) && !k.over {
		t.Fatalf("the label is %q, want %q (or of %v)", v, k.label, k.maybe)
	}
	if k.ended && s.GetPhase() != sessionv1.Session_ENDED {
		t.Fatalf("an ended session is %v", s.GetPhase())
	}
}

// verify compares what the store underneath has with what was told.
func (r *rig) verify(t T, id string, k *told) {
	t.Helper()
	s, err := r.inner.Get(context.Background(), id)
	if errors.Is(err, storage.ErrNotFound) && (k.gone || k.over) {
		return
	}
	if err != nil || k.gone {
		t.Fatalf("it is %v, %v; deleted: %v", s, err, k.gone)
	}
	k.matches(t, s)
	page, err := r.inner.ListEvents(context.Background(), storage.EventQuery{SessionID: id, After: "0", Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range page.Events {
		if !strings.HasPrefix(e.GetId(), "session:") && slices.Contains(k.events, e.GetId()) {
			got = append(got, e.GetId())
		}
	}
	if !slices.Equal(got, k.events) && !k.over {
		t.Fatalf("the log has %v, want %v", got, k.events)
	}
}
