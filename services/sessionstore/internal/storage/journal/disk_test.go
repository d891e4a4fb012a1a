package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// segment is the log of a directory that has one.
func segment(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "seg-*"))
	if err != nil || len(names) != 1 {
		t.Fatalf("segments: %v, %v", names, err)
	}
	return names[0]
}

// TestTornAnywhere: a log cut at any byte has every write that was acknowledged
// up to there; one with any bit changed has them all or is refused.
func TestTornAnywhere(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	path := segment(t, r.dir)
	sizes := []int64{} // of the log once each event was acknowledged
	for i := range 6 {
		must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event(fmt.Sprint("e", i))}))
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, st.Size())
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// opened returns how many events wait after a start with these bytes.
	opened := func(bytes []byte) (int, error) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		opts := r.opts
		opts.Dir, opts.Base = dir, nothingKnown
		down := &storagetest.Faulty{Store: stay{r.inner}}
		down.Set(storagetest.Refuses)
		s, err := New(down, opts)
		if err != nil {
			return 0, err
		}
		defer s.Close()
		return int(s.Stats().Waiting), nil
	}
	for cut := range whole {
		want := 0
		for _, size := range sizes {
			if size <= int64(cut) {
				want++
			}
		}
		if got, err := opened(whole[:cut]); err != nil || got != want {
			t.Fatalf("cut at %d: %d writes wait, %v; want %d", cut, got, err, want)
		}
	}
	for at := range whole {
		flipped := append([]byte(nil), whole...)
		flipped[at] ^= 1 << (at % 8)
		got, err := opened(flipped)
		// The last batch may be taken for one that was never finished.
		if err == nil && got < len(sizes)-1 {
			t.Fatalf("bit flipped in byte %d: %d writes of %d wait, and nothing was said", at, got, len(sizes))
		}
		if err != nil && !strings.Contains(err.Error(), filepath.Base(path)) {
			t.Fatalf("bit flipped in byte %d: the error does not name the file: %v", at, err)
		}
	}
}

// TestFullDisk: nothing is acknowledged that cannot be kept; what was kept is
// replayed; and the journal comes back by itself.
func TestFullDisk(t *testing.T) {
	for _, before := range []bool{true, false} {
		t.Run(fmt.Sprintf("writes wait already %v", before), func(t *testing.T) {
			ctx := t.Context()
			d := &flakyDisk{}
			r := newRigOn(t, t.TempDir(), d)
			defer r.close()
			id := r.create("ann")
			r.below.Set(storagetest.Refuses)
			kept := 0
			if before {
				must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("kept")}))
				kept++
			}
			d.full.Store(true)
			for i := range 3 {
				_, err := r.Append(ctx, id, []*sessionv1.Event{event(fmt.Sprint("full", i))})
				wantErr(t, err, storage.ErrUnavailable, storage.ErrJournal)
			}
			if r.Stats().Err == nil {
				t.Error("the failure is not told")
			}
			d.free(r)
			must[[]string](t)(r.Append(ctx, id, []*sessionv1.Event{event("after")}))
			kept++
			r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
			r.drained()
			page := must[storage.EventPage](t)(r.inner.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 100}))
			n := 0
			for _, e := range page.Events {
				if e.GetId() == "kept" || e.GetId() == "after" {
					n++
				}
			}
			if n != kept {
				t.Errorf("%d of %d acknowledged events are there: %v", n, kept, page.Events)
			}
		})
	}
}

// fill makes the disk full in an outage, with an update of the session returned
// that waits, and one that was refused.
func (d *flakyDisk) fill(r *rig) (id string) {
	r.t.Helper()
	ctx := context.Background()
	id = r.create("ann")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](r.t)(r.Update(ctx, id, label("a", "1")))
	d.full.Store(true)
	_, err := r.Update(ctx, id, label("a", "2"))
	wantErr(r.t, err, storage.ErrJournal)
	return id
}

// free makes room, and waits until the journal has seen it.
func (d *flakyDisk) free(r *rig) {
	r.t.Helper()
	d.full.Store(false)
	storagetest.Until(r.t, "the journal can be written again", func() bool { return r.Stats().Err == nil })
}

// TestFullDiskDrains: what waits is replayed although the disk is full, and the
// store works on without a journal.
func TestFullDiskDrains(t *testing.T) {
	ctx := t.Context()
	d := &flakyDisk{}
	r := newRigOn(t, t.TempDir(), d)
	defer r.close()
	id := d.fill(r)
	r.drained()
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("a", "3")))
	if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id)); got.GetLabels()["a"] != "3" {
		t.Errorf("it is %v", got)
	}
	d.free(r)
}

// TestFullDiskAtTheStart: a process that is started on a full disk replays what was
// accepted, turns away what it would have to write down, and accepts it once there is
// room.
func TestFullDiskAtTheStart(t *testing.T) {
	ctx := t.Context()
	d := &flakyDisk{}
	r := newRigOn(t, t.TempDir(), d)
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("before", "x")))
	d.full.Store(true)
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Refuses)
	if got := must[*sessionv1.Session](t)(r.Get(ctx, id)); got.GetLabels()["before"] != "x" {
		t.Errorf("reads %v", got)
	}
	_, err := r.Update(ctx, id, label("during", "x"))
	wantErr(t, err, storage.ErrUnavailable, storage.ErrJournal)
	if r.Err() == nil {
		t.Error("nothing tells that the disk is full")
	}
	r.drained()
	if got := must[*sessionv1.Session](t)(r.inner.Get(ctx, id)); got.GetLabels()["before"] != "x" || len(got.GetLabels()) != 1 {
		t.Errorf("replayed: %v", got)
	}
	d.full.Store(false)
	storagetest.Until(t, "the journal can be written", func() bool { return r.Err() == nil })
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("after", "x")))
	r.drained()
}

// TestFullDiskIsReplayedOnce: what was replayed while the disk was full, so that this
// could not be written down, is not replayed again after a restart: by then others have
// changed the session.
func TestFullDiskIsReplayedOnce(t *testing.T) {
	for _, full := range []bool{false, true} {
		ctx := t.Context()
		d := &flakyDisk{}
		r := newRigOn(t, t.TempDir(), d)
		r.below.Set(storagetest.Refuses)
		made := r.create("ann")
		d.full.Store(true)
		_, err := r.Update(ctx, made, label("during", "x"))
		wantErr(t, err, storage.ErrUnavailable)
		r.drained()
		storagetest.Until(t, "the log is erased", func() bool {
			names, err := filepath.Glob(filepath.Join(r.dir, "s*-*"))
			return err == nil && len(names) == 0
		})
		must[*sessionv1.Session](t)(r.End(ctx, made, "stolen"))
		r.clock.Advance(2 * time.Hour) // it is purged
		must[storage.SweepResult](t)(r.Sweep(ctx))
		must[storage.SweepResult](t)(r.inner.Sweep(ctx))
		d.full.Store(full)
		r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
		r.drained()
		if got, err := r.Get(ctx, made); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("full %v: read %v, %v", full, got, err)
		}
		d.full.Store(false)
		storagetest.Until(t, "the journal can be written", func() bool { return r.Err() == nil })
		r.close()
	}
}

// TestFullDiskIsNotReadOver: as long as nothing can be written, what is on disk
// is not read again and again to find that out.
func TestFullDiskIsNotReadOver(t *testing.T) {
	var tries atomic.Int64
	d := &flakyDisk{refused: func(path string) {
		if tries.Add(1); !strings.HasPrefix(filepath.Base(path), "probe-") {
			t.Errorf("%s was to be made", path)
		}
	}}
	r := newRigOn(t, t.TempDir(), d)
	defer r.close()
	d.fill(r)
	storagetest.Until(t, "it was tried some times", func() bool { return tries.Load() > 3 })
	d.free(r)
	if left, err := filepath.Glob(filepath.Join(r.dir, "probe-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestReadOnly: a directory that cannot be written is refused at the start.
func TestReadOnly(t *testing.T) {
	r := newRig(t, t.TempDir())
	defer r.close()
	opts := r.opts
	opts.Dir, opts.Base = t.TempDir(), nothingKnown
	d := &flakyDisk{}
	d.full.Store(true)
	opts.create = d.create
	if _, err := New(r.inner, opts); !errors.Is(err, errDisk) || !strings.Contains(err.Error(), opts.Dir) {
		t.Fatalf("got %v", err)
	}
	if _, err := New(r.inner, Options{}); err == nil {
		t.Fatal("options without a directory pass")
	}
}

// TestBounded: beyond its bounds the journal says so, and takes writes again
// once there is room.
func TestBounded(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir(), func(o *Options) { o.MaxWrites = 3 })
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	for i := range 3 {
		must[*sessionv1.Session](t)(r.Update(ctx, id, label("n", fmt.Sprint(i))))
	}
	_, err := r.Update(ctx, id, label("n", "3"))
	wantErr(t, err, storage.ErrUnavailable, storage.ErrJournal)
	r.drained()
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("n", "3")))
}

// TestBoundedBytes: so it is by size.
func TestBoundedBytes(t *testing.T) {
	r := newRig(t, t.TempDir(), func(o *Options) { o.MaxBytes = 100 })
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(t.Context(), id, label("a", strings.Repeat("x", 200))))
	_, err := r.Update(t.Context(), id, label("a", "1"))
	wantErr(t, err, storage.ErrUnavailable, storage.ErrJournal)
}

// TestTidy: a log that has grown is replaced once nothing waits, and keeps the
// dead letters.
func TestTidy(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, t.TempDir())
	defer r.close()
	id := r.create("ann")
	r.below.Set(storagetest.Refuses)
	must[*sessionv1.Session](t)(r.Update(ctx, id, label("n", "1")))
	if _, err := r.inner.End(ctx, id, "elsewhere"); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 64<<10)
	other := r.create("bob")
	for range 20 {
		must[*sessionv1.Session](t)(r.Update(ctx, other, label("big", big)))
	}
	r.drained()
	storagetest.Until(t, "the log is small again", func() bool { return r.disk.size() < tidyBytes })
	r.crash(filepath.Join(t.TempDir(), "j"), storagetest.Works)
	if page, more := r.DeadLetters(10, ""); len(page) != 1 || more || page[0].SessionID != id {
		t.Errorf("dead letters: %+v, %v", page, more)
	}
}
