package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

// TestNoAnswerFromABrokenDisk: a creation that failed is not acknowledged to
// who asks again.
func TestNoAnswerFromABrokenDisk(t *testing.T) {
	ctx := t.Context()
	d := &flakyDisk{}
	r := newRigOn(t, t.TempDir(), d)
	defer r.close()
	r.below.Set(storagetest.Refuses)
	d.full.Store(true)
	_, _, err := r.Create(ctx, r.fresh("ann"), "k")
	wantErr(t, err, storage.ErrJournal)
	storagetest.Until(t, "the journal has been found broken", func() bool {
		r.disk.mu.RLock()
		defer r.disk.mu.RUnlock()
		return r.disk.log == nil
	})
	_, _, err = r.Create(ctx, r.fresh("ann"), "k")
	if err == nil {
		t.Fatal("acknowledged what is on no disk")
	}
	wantErr(t, err, storage.ErrJournal)
	d.full.Store(false)
}

// TestTidyWaitsForWrites: what is in the log and not yet among those that wait
// is not forgotten by a snapshot.
func TestTidyWaitsForWrites(t *testing.T) {
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	// A write halfway through accept.
	r.accepting.RLock()
	a := &accepted{seq: r.waiting.number(), write: storage.Write{SessionID: id, At: r.now(), Delete: true}}
	record := must[[]byte](t)(a.encode())
	at := must[place](t)(r.disk.append(record))
	if err := at.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	filler := must[[]byte](t)(deadRecord(1<<40, string(make([]byte, tidyBytes))))
	at = must[place](t)(r.disk.append(filler))
	if err := at.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); r.tidy() }()
	storagetest.Until(t, "the snapshot waits, or is there", func() bool {
		select {
		case <-done:
			return true
		default:
		}
		if !r.accepting.TryRLock() {
			return true
		}
		r.accepting.RUnlock()
		return false
	})
	r.push(a, false)
	r.accepting.RUnlock()
	<-done
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
	if got := r.Stats().Waiting; got != 1 {
		t.Fatalf("%d writes wait, want the one that was in the log", got)
	}
}

// TestNumbersAreNotUsedAgain: a write is not taken for one of before that was
// replayed.
func TestNumbersAreNotUsedAgain(t *testing.T) {
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	for _, n := range []int64{1, 2, 3} {
		at := must[place](t)(r.disk.append(must[[]byte](t)(doneRecord(n))))
		if err := at.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
	must[*sessionv1.Session](t)(r.Get(t.Context(), id))
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(t.Context(), id, label("a", "1")))
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
	if got := r.Stats().Waiting; got != 1 {
		t.Fatalf("%d writes wait, want 1", got)
	}
}

// TestOldestIsToldWhileItIsReplayed: a replay that hangs hides nothing.
func TestOldestIsToldWhileItIsReplayed(t *testing.T) {
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	started, gate := make(chan struct{}, 1), make(chan struct{})
	inner := r.below.Store
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		select {
		case started <- struct{}{}:
		default:
		}
		<-gate
		return inner.Replay(ctx, w)
	}}
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(t.Context(), id, label("a", "1")))
	r.below.Set(storagetest.Works)
	<-started
	if st := r.Stats(); st.Waiting != 1 || st.Oldest.IsZero() {
		t.Errorf("stats while it is replayed: %+v", st)
	}
	close(gate)
	r.drained()
}

// leaving is the context of a caller who leaves after so many looks at it.
type leaving struct {
	context.Context
	left atomic.Int64
}

func (l *leaving) Err() error {
	if l.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestCallerLeaves: whenever a caller leaves, who reports the same again is told
// no more than what will be in the store.
func TestCallerLeaves(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	for n := range 12 {
		r.below.Set(storagetest.Works)
		r.drained()
		id := r.create(fmt.Sprint("u", n))
		r.below.Set(storagetest.Refuses)
		must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("e")}))
		r.clock.Advance(time.Minute)
		a := storage.Activity{SessionID: id, Kind: "input", Time: r.clock.Now()}
		gone := &leaving{Context: context.Background()}
		gone.left.Store(int64(n))
		_, _ = r.Extend(gone, []storage.Activity{a})
		res := must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{a}))
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
		r.drained()
		got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id))
		if !got.GetLastActivityTime().AsTime().Equal(a.Time.Truncate(time.Millisecond)) {
			t.Errorf("left after %d looks: the activity of %v was acknowledged, and the last one is of %v", n, a.Time, got.GetLastActivityTime().AsTime())
		}
	}
}

// TestTruncatedIsPassedOn: that the store underneath has dropped events is told,
// TestLostAnswerIsSeenOnce: an event that was applied although its answer was
// TestUnspeakableReason: whatever the store says of a write, the journal can be
// written.
func TestUnspeakableReason(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	inner := r.below.Store
	r.below.Store = &hooked{Store: inner, replay: func(context.Context, storage.Write) error { return errors.New("ERR \xff\xfe") }}
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("a", "1")))
	r.drained()
	if err := r.disk.snapshot(func(put func([]byte) error) error { return r.emit(put, r.waiting.all()) }); err != nil {
		t.Error(err)
	}
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
	if page, _ := r.DeadLetters(10, ""); len(page) != 1 {
		t.Errorf("dead letters: %+v", page)
	}
}

// TestReplayedIsWrittenDownFirst: what was replayed is known to be done with, on disk,
// before several updates are replayed at once, before the session's end, and once it
// has left; and at most one replay more is not, before others.
func TestReplayedIsWrittenDownFirst(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	inner := r.below.Store
	var waits []int64
	r.below.Store = &hooked{Store: inner, replay: func(ctx context.Context, w storage.Write) error {
		waits = append(waits, onDisk(t, r.dir))
		return inner.Replay(ctx, w)
	}}
	r.below.Set(storagetest.Refuses)
	update := func(n int) {
		must[*sessionv1.Session](t)(r.Update(ctx, id, label("n", fmt.Sprint(n))))
	}
	for n := range 4 { // a report between them, so that they come one by one
		update(n)
		r.clock.Advance(time.Second)
		must[[]storage.ExtendResult](t)(r.Extend(ctx, []storage.Activity{{SessionID: id}}))
	}
	update(4)
	update(5)
	must[*sessionv1.Session](t)(r.End(ctx, id, "done"))
	r.drained()
	waits = append(waits, onDisk(t, r.dir)) // it has left: others may change it
	if len(waits) != 11 || !slices.Equal(waits[8:], []int64{3, 1, 0}) {
		t.Fatalf("%v writes were left on disk", waits)
	}
	for i, got := range waits[:8] {
		if want := int64(11 - i); got < want || got > want+2 {
			t.Errorf("%v writes were left on disk; number %d is to be %d, or little more", waits, i, want)
		}
	}
}

// onDisk is how many writes are left to be replayed by what is on disk.
func onDisk(t *testing.T, dir string) int64 {
	t.Helper()
	at := t.TempDir()
	if err := os.CopyFS(at, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	c := newContents()
	log, err := wal.Open(wal.Options{Dir: at}, c.add)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	left := int64(0)
	for seq := range c.accepted {
		if c.left(seq) {
			left++
		}
	}
	return left
}
