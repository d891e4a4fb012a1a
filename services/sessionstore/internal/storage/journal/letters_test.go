package journal

import (
	"errors"
	"path/filepath"
	"testing"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestDeadLetters: what another replica made impossible is not forced, not lost,
// and stands in nobody's way.
func TestDeadLetters(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	changed, ended := r.create("ann"), r.create("bob")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, changed, storage.Update{IfRevision: 1, SetLabels: map[string]string{"a": "mine"}}))
	must[*sessionv1.Session](t)(r.Update(ctx, changed, label("b", "mine")))
	must[[]string](t)(r.Append(ctx, ended, []*sessionv1.Event{event("e")}))
	must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: ended}}))
	// Meanwhile, elsewhere.
	must[*sessionv1.Session](t)(r.inner.Update(ctx, changed, label("a", "theirs")))
	must[*sessionv1.Session](t)(r.inner.End(ctx, ended, "elsewhere"))
	r.drained()
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)

	got := must[*sessionv1.Session](t)(r.Get(ctx, changed))
	if got.GetLabels()["a"] != "theirs" || got.GetLabels()["b"] != "mine" {
		t.Errorf("it is %v", got)
	}
	page, more := r.DeadLetters(1, "")
	if len(page) != 1 || !more || page[0].SessionID != changed || page[0].Operation != "UpdateSession" || page[0].Reason == "" || page[0].Accepted.IsZero() {
		t.Fatalf("dead letters: %+v, %v", page, more)
	}
	rest, more := r.DeadLetters(10, page[0].ID)
	if len(rest) != 1 || more || rest[0].SessionID != ended || rest[0].Operation != "AppendEvents" {
		t.Fatalf("dead letters: %+v, %v", rest, more)
	}

	wantErr(t, r.RetryDeadLetter(ctx, rest[0].ID, false), storage.ErrEnded) // it stays
	wantErr(t, r.RetryDeadLetter(ctx, "nobody", false), storage.ErrNotFound)
	if err := r.inner.Delete(ctx, ended); err != nil {
		t.Fatal(err)
	}
	if err := r.RetryDeadLetter(ctx, rest[0].ID, false); err == nil || errors.Is(err, storage.ErrNotFound) {
		t.Errorf("of a session that is gone: %v, as if there were no such letter", err)
	}
	if err := r.RetryDeadLetter(ctx, page[0].ID, false); err != nil {
		t.Fatal(err)
	}
	if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, changed)); got.GetLabels()["a"] != "mine" {
		t.Errorf("retried it is %v", got)
	}
	if err := r.RetryDeadLetter(ctx, rest[0].ID, true); err != nil {
		t.Fatal(err)
	}
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
	if n := r.Stats().DeadLetters; n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
}

// TestReadsAfterReplay: what was replayed is known when the next outage comes.
func TestReadsAfterReplay(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("a", "1")))
	r.drained()
	// The next outage comes at once: reads and writes go on.
	r.below.Set(storagetest.Refuses)
	if got := must[*sessionv1.Session](t)(r.Get(ctx, id)); got.GetLabels()["a"] != "1" {
		t.Errorf("it reads as %v", got)
	}
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("a", "2")))
}

// TestDeadLettersAreBounded: more writes are refused than the dead-letter queue takes.
// Nothing acknowledged is dropped: the sessions of the others wait, which is in the
// status, other sessions go on, and the journal's own bound refuses what is new in
// the end. It is the same after a restart. Once there is room, they go on.
func TestDeadLettersAreBounded(t *testing.T) {
	for name, bound := range map[string]func(*Options){
		"number": func(o *Options) { o.MaxLetters = 3 },
		"bytes":  func(o *Options) { o.MaxLetters, o.MaxLetterBytes = 1000, 1500 },
	} {
		t.Run(name, func(t *testing.T) { testLettersBound(t, bound) })
	}
}

func testLettersBound(t *testing.T, bound func(*Options)) {
	t.Helper()
	ctx := t.Context()
	const refused, most = 12, 60
	r := newRig(t, t.TempDir(), bound, func(o *Options) { o.MaxWrites = most })
	defer r.close()
	good := r.create("good")
	ids := make([]string, refused)
	for i := range ids {
		ids[i] = r.create("ann")
	}
	r.below.Set(storagetest.Refuses)
	for _, id := range ids {
		must[*sessionv1.Session](t)(r.Update(ctx, id, storage.Update{IfRevision: 1, SetLabels: map[string]string{"a": "mine"}}))
		must[*sessionv1.Session](t)(r.Update(ctx, id, label("b", "mine")))
	}
	must[[]string](t)(r.Append(ctx, good, []*sessionv1.Event{event("e")}))
	for _, id := range ids { // meanwhile, elsewhere
		must[*sessionv1.Session](t)(r.inner.Update(ctx, id, label("a", "theirs")))
	}
	r.below.Set(storagetest.Works)
	stalled := func() {
		t.Helper()
		storagetest.Until(t, "the others are replayed", func() bool {
			st := r.Stats()
			return st.Parked > 0 && st.DeadLetters+int64(st.Parked) == refused && int(st.Waiting) == 2*st.Parked
		})
		if w := r.Status(ctx).Warnings; len(w) != 1 || w[0].Code != "dead-letters-full" {
			t.Fatalf("warnings %v", w)
		}
	}
	stalled()
	if n := r.Stats().DeadLetters; n < 2 || n > 8 {
		t.Fatalf("%d dead letters", n)
	}
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
	stalled()

	// Others go on, those of a session that waits are accepted behind what waits, and
	// no longer than there is room.
	must[[]string](t)(r.Append(ctx, good, []*sessionv1.Event{event("later")}))
	var err error
	more := 0
	for ; err == nil; more++ {
		for _, id := range ids {
			if r.holds(id) {
				_, err = r.Append(ctx, id, []*sessionv1.Event{event(storage.NewWriteID())})
				break
			}
		}
	}
	wantErr(t, err, storage.ErrUnavailable, storage.ErrJournal, errLettersFull)
	if kept := r.Stats().Waiting; more < 10 || kept > most {
		t.Errorf("%d more writes were accepted, %d wait", more, kept)
	}
	for r.depth.Load() > 0 || r.Stats().DeadLetters > 0 {
		if page, _ := r.DeadLetters(1, ""); len(page) == 1 {
			if err := r.RetryDeadLetter(ctx, page[0].ID, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.drained()
	if w := r.Status(ctx).Warnings; len(w) != 0 {
		t.Errorf("warnings %v", w)
	}
	for _, id := range ids {
		if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id)).GetLabels(); got["a"] != "mine" || got["b"] != "mine" {
			t.Errorf("%s has %v", id, got)
		}
	}
}

// TestEndsOfParkedSessions: with the dead-letter queue full, ends, deletions and
// revocations take effect for everybody at once.
func TestEndsOfParkedSessions(t *testing.T) {
	ctx := t.Context()
	for name, end := range map[string]func(r *rig, id, user string) error{
		"end":    func(r *rig, id, _ string) error { _, err := r.End(ctx, id, "stolen"); return err },
		"delete": func(r *rig, id, _ string) error { return r.Delete(ctx, id) },
		"revoke": func(r *rig, _, user string) error {
			n, err := r.RevokeUser(ctx, "acme", user, nil, "stolen")
			if n != 1 {
				t.Errorf("%d revoked", n)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, t.TempDir(), func(o *Options) { o.MaxLetters = 1 })
			defer r.close()
			ids := map[string]string{"ann": r.create("ann"), "bob": r.create("bob")}
			r.below.Set(storagetest.Refuses)
			for _, id := range ids {
				must[*sessionv1.Session](t)(r.Update(ctx, id, storage.Update{IfRevision: 1, SetLabels: map[string]string{"a": "mine"}}))
				must[*sessionv1.Session](t)(r.inner.Update(ctx, id, label("a", "theirs")))
			}
			r.below.Set(storagetest.Works)
			storagetest.Until(t, "one is parked", func() bool { return r.Stats().Parked == 1 })
			for user, id := range ids {
				if err := end(r, id, user); err != nil {
					t.Fatal(err)
				}
				if got, err := r.inner.Get(ctx, id); err == nil && got.GetEndTime() == nil {
					t.Errorf("live for everybody else: %v", got)
				}
			}
			for r.Stats().DeadLetters > 0 {
				page, _ := r.DeadLetters(1, "")
				if err := r.RetryDeadLetter(ctx, page[0].ID, true); err != nil {
					t.Fatal(err)
				}
				storagetest.Until(t, "none is parked, or a dead letter is there", func() bool { st := r.Stats(); return st.Waiting == 0 || st.DeadLetters > 0 })
			}
			r.drained()
		})
	}
}
