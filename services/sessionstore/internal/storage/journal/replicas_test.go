package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// shared is what the callers of all replicas know of one session. Each update
// sets a label of its own.
type shared struct {
	id string
	// by is the replica that made it; until it has landed in the store
	// underneath, the other one does not know it.
	by     int
	landed bool
	// labels and events are those acknowledged, by replica and in order; tried
	// are the labels of all updates that may have been applied.
	labels, events [2][]string
	tried          map[string]bool
	// ended and gone are when that was acknowledged, over when it may be so.
	ended, gone, over bool
}

// replicas are two journals over one store, each with faults of its own.
type replicas struct {
	all  [2]*rig
	root string
	n    int
	made []*shared
}

func (p *replicas) next() string { p.n++; return fmt.Sprint(p.n) }

func (p *replicas) dir() string { return filepath.Join(p.root, p.next()) }

// TestReplicasLoseNothing: two replicas write to the same sessions, fail apart
// from each other and are killed. Every write that one of them acknowledged is
// in the store afterwards, once and in the order of its replica, or among that
// replica's dead letters.
func TestReplicasLoseNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := &replicas{root: t.TempDir()} // another one each time
		p.all[0] = newRig(rt, p.dir())
		defer p.all[0].close()
		p.all[1] = p.all[0].beside(p.dir())
		defer func() { _ = p.all[1].Close() }()
		faults := rapid.SampledFrom([]storagetest.Fault{storagetest.Works, storagetest.Refuses, storagetest.Loses})
		on := func(op func(t *rapid.T, who int, r *rig, s *shared)) func(*rapid.T) {
			return func(t *rapid.T) {
				if len(p.made) == 0 {
					t.Skip("no session yet")
				}
				who := rapid.IntRange(0, 1).Draw(t, "replica")
				p.look()
				op(t, who, p.all[who], p.made[rapid.IntRange(max(0, len(p.made)-2), len(p.made)-1).Draw(t, "session")])
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				if n := len(p.made); n > 1 && !p.made[n-1].over && !p.made[n-2].over {
					t.Skip("so few that much becomes of each")
				}
				who := rapid.IntRange(0, 1).Draw(t, "replica")
				r := p.all[who]
				s, _, err := r.Create(context.Background(), r.fresh("u"), "")
				if err != nil {
					t.Fatalf("create: %v", err)
				}
				p.made = append(p.made, &shared{id: s.GetId(), by: who, tried: map[string]bool{}})
			},
			"update":         on(p.update),
			"append":         on(p.append),
			"read":           on(p.read),
			"end":            on(p.end),
			"delete":         on(p.delete),
			"retry a letter": on(p.retry),
			"update in a short outage": on(func(t *rapid.T, who int, r *rig, s *shared) {
				r.below.Set(faults.Draw(t, "fault"))
				p.update(t, who, r, s)
				r.drained()
			}),
			"extend": on(func(t *rapid.T, _ int, r *rig, s *shared) {
				if _, err := r.Extend(context.Background(), []storage.Activity{{SessionID: s.id, Kind: "input"}}); err != nil {
					t.Fatalf("extend: %v", err)
				}
			}),
			"fault": on(func(t *rapid.T, _ int, r *rig, _ *shared) { r.below.Set(faults.Draw(t, "fault")) }),
			"crash": on(func(t *rapid.T, who int, r *rig, s *shared) {
				if rapid.Bool().Draw(t, "with an update that waits") {
					r.below.Set(storagetest.Refuses)
					p.update(t, who, r, s)
				}
				r.crash(p.dir(), faults.Draw(t, "fault"))
				p.look()
				for _, s := range p.made {
					p.read(t, who, r, s)
				}
			}),
			"drain": on(func(_ *rapid.T, _ int, r *rig, _ *shared) { r.drained() }),
			"time":  func(*rapid.T) { p.all[0].clock.Advance(time.Second) },
		})
		for _, r := range p.all {
			r.drained()
		}
		for _, s := range p.made {
			p.verify(rt, s)
		}
	})
}

// look notes which sessions have landed.
func (p *replicas) look() {
	for _, s := range p.made {
		if _, err := p.all[0].inner.Get(context.Background(), s.id); err == nil {
			s.landed = true
		}
	}
}

// may says whether an operation of a replica may fail so.
func (s *shared) may(t *rapid.T, op string, who int, err error, also ...error) {
	t.Helper()
	ok := err == nil || !s.landed && who != s.by && errors.Is(err, storage.ErrNotFound) ||
		errors.Is(err, storage.ErrUnavailable) || s.over && (errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrEnded))
	for _, e := range also {
		ok = ok || errors.Is(err, e)
	}
	if !ok {
		t.Fatalf("%s: %v for %+v", op, err, s)
	}
}

func (p *replicas) update(t *rapid.T, who int, r *rig, s *shared) {
	ctx := context.Background()
	k := "l" + p.next()
	u := label(k, "x")
	if rapid.Bool().Draw(t, "with revision") {
		if got, err := r.Get(ctx, s.id); err == nil {
			u.IfRevision = got.GetRevision()
		}
	}
	_, err := r.Update(ctx, s.id, u)
	switch {
	case err == nil:
		s.labels[who] = append(s.labels[who], k)
		s.tried[k] = true
	case errors.Is(err, storage.ErrUnavailable):
		s.tried[k] = true
	}
	s.may(t, "update", who, err, storage.ErrConflict)
}

func (p *replicas) append(t *rapid.T, who int, r *rig, s *shared) {
	e := "e" + p.next()
	_, err := r.Append(context.Background(), s.id, []*sessionv1.Event{event(e)})
	if err == nil {
		s.events[who] = append(s.events[who], e)
	}
	s.may(t, "append", who, err)
}

// read: who was told that a write is done sees it, from the replica that told
// it, unless it was refused since.
func (p *replicas) read(t *rapid.T, who int, r *rig, s *shared) {
	got, err := r.Get(context.Background(), s.id)
	s.may(t, "read", who, err)
	if err != nil {
		return
	}
	dead := r.dead(s.id)
	for _, k := range s.labels[who] {
		if _, ok := got.GetLabels()[k]; !ok && !s.over && !dead[k] {
			t.Fatalf("replica %d reads %v, without the label %s it has acknowledged", who, got, k)
		}
	}
	for k := range got.GetLabels() {
		if !s.tried[k] {
			t.Fatalf("replica %d reads %v, with the label %s of an update that was refused", who, got, k)
		}
	}
}

func (p *replicas) end(t *rapid.T, who int, r *rig, s *shared) {
	_, err := r.End(context.Background(), s.id, "done")
	s.may(t, "end", who, err)
	s.ended = s.ended || err == nil
	s.over = s.over || err == nil || errors.Is(err, storage.ErrUnavailable)
}

func (p *replicas) delete(t *rapid.T, who int, r *rig, s *shared) {
	err := r.Delete(context.Background(), s.id)
	s.may(t, "delete", who, err)
	s.gone = s.gone || err == nil
	s.over = s.over || err == nil || errors.Is(err, storage.ErrUnavailable)
}

// retry forces a replica's first dead letter.
func (p *replicas) retry(t *rapid.T, _ int, r *rig, _ *shared) {
	page, _ := r.DeadLetters(1, "")
	if len(page) == 0 {
		t.Skip("none")
	}
	if err := r.RetryDeadLetter(context.Background(), page[0].ID, false); err != nil && !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrEnded) {
		t.Fatalf("retry of %+v: %v", page[0], err)
	}
}

// verify compares what the store underneath has with what was acknowledged.
func (p *replicas) verify(t *rapid.T, s *shared) {
	ctx := context.Background()
	got, err := p.all[0].inner.Get(ctx, s.id)
	if errors.Is(err, storage.ErrNotFound) && (s.gone || s.over) {
		return
	}
	if err != nil || s.gone {
		t.Fatalf("it is %v, %v; deleted: %v", got, err, s.gone)
	}
	ended := int64(0)
	if got.GetPhase() == sessionv1.Session_ENDED {
		ended = 1
	}
	if s.ended && ended == 0 || ended > 0 && !s.over {
		t.Fatalf("it is %v; ended: %v", got, s.ended)
	}
	if want := 1 + int64(len(got.GetLabels())) + ended; got.GetRevision() != want {
		t.Fatalf("revision %d, want %d: an update was applied other than once: %v", got.GetRevision(), want, got)
	}
	page, err := p.all[0].inner.ListEvents(ctx, storage.EventQuery{SessionID: s.id, After: "0", Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	var log []string
	for _, e := range page.Events {
		if !strings.HasPrefix(e.GetId(), "session:") {
			log = append(log, e.GetId())
		}
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(log)))); n != len(log) {
		t.Fatalf("an event is there twice: %v", log)
	}
	for who, r := range p.all {
		dead := r.dead(s.id)
		for _, k := range s.labels[who] {
			if _, ok := got.GetLabels()[k]; !ok && !dead[k] {
				t.Fatalf("the label %s, acknowledged by replica %d, is neither in %v nor a dead letter (%v)", k, who, got, slices.Sorted(maps.Keys(dead)))
			}
		}
		want := slices.DeleteFunc(slices.Clone(s.events[who]), func(e string) bool { return dead[e] })
		have := slices.DeleteFunc(slices.Clone(log), func(e string) bool { return !slices.Contains(want, e) })
		if !slices.Equal(have, want) {
			t.Fatalf("the log has %v of what replica %d acknowledged, want %v", have, who, want)
		}
		if len(dead) > 0 && len(want) < len(s.events[who]) && !s.over {
			t.Fatalf("events of a live session are dead letters: %v", dead)
		}
	}
}

// dead are the labels and events of a session among the dead letters.
func (r *rig) dead(id string) map[string]bool {
	out := map[string]bool{}
	for _, l := range r.letters.all() {
		w := l.write.write
		if w.SessionID != id {
			continue
		}
		if w.Update != nil {
			for k := range w.Update.SetLabels {
				out[k] = true
			}
		}
		for _, e := range w.Append {
			out[e.GetId()] = true
		}
	}
	return out
}
