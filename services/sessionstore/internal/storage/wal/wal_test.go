package wal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a log and returns what it replayed.
func open(t *testing.T, dir string) (*Log, []string) {
	t.Helper()
	l, got, err := tryOpen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, got
}

func tryOpen(dir string) (*Log, []string, error) {
	var got []string
	l, err := Open(Options{Dir: dir, SegmentBytes: 1 << 20}, func(r []byte) error {
		got = append(got, string(r))
		return nil
	})
	return l, got, err
}

func add(t *testing.T, l *Log, records ...string) {
	t.Helper()
	for _, r := range records {
		seq, err := l.Append([]byte(r))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Wait(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("replayed %v, want %v", got, want)
	}
}

func shut(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReplay(t *testing.T) {
	dir := t.TempDir()
	l, got := open(t, dir)
	same(t, got)
	add(t, l, "a", "b")
	shut(t, l)
	l, got = open(t, dir)
	same(t, got, "a", "b")
	add(t, l, "c")
	shut(t, l)
	l, got = open(t, dir)
	same(t, got, "a", "b", "c")
	if l.Cut() != 0 {
		t.Errorf("cut %d bytes off a sound log", l.Cut())
	}
	if _, err := l.Append(nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an empty record: %v", err)
	}
	shut(t, l)
	if _, err := l.Append([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if _, _, err := tryOpen(dir); err == nil {
		t.Fatal("opened twice")
	}
}

func TestSnapshotReplacesWhatWasBefore(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	add(t, l, "a", "b")
	err := l.Snapshot(func(emit func([]byte) error) error {
		add(t, l, "during")
		return errors.Join(emit([]byte("A")), emit([]byte("B")))
	})
	if err != nil {
		t.Fatal(err)
	}
	add(t, l, "after")
	shut(t, l)
	l, got := open(t, dir)
	same(t, got, "A", "B", "during", "after")
	// Again, with nothing appended in between.
	for range 2 {
		if err := l.Snapshot(func(emit func([]byte) error) error { return emit([]byte("S")) }); err != nil {
			t.Fatal(err)
		}
	}
	add(t, l, "last")
	shut(t, l)
	l, got = open(t, dir)
	same(t, got, "S", "last")
	boom := errors.New("boom")
	if err := l.Snapshot(func(func([]byte) error) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("a failed snapshot returned %v", err)
	}
	add(t, l, "more")
	shut(t, l)
	_, got = open(t, dir)
	same(t, got, "S", "last", "more")
}

func TestSegmentsRotate(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(Options{Dir: dir, SegmentBytes: 200}, func([]byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for n := range 50 {
		want = append(want, fmt.Sprintf("record number %d", n))
		add(t, l, want[n])
	}
	shut(t, l)
	if files, _ := filepath.Glob(filepath.Join(dir, "seg-*")); len(files) < 5 {
		t.Errorf("only %d segments", len(files))
	}
	l, got := open(t, dir)
	same(t, got, want...)
	shut(t, l)
	// A segment that vanished is damage, not an end.
	files, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	if err := os.Remove(files[2]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tryOpen(dir); err == nil {
		t.Error("opened a log with a hole")
	}
}

// sound writes a small log and returns its only segment and its records.
func sound(t *testing.T) ([]byte, []string) {
	t.Helper()
	dir := t.TempDir()
	l, _ := open(t, dir)
	want := []string{"first", "second record", "third"}
	add(t, l, want...)
	shut(t, l)
	b, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		t.Fatal(err)
	}
	return b, want
}

func place(t *testing.T, b []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestEveryCut cuts the log at every byte, and puts zeros where the rest was:
// each time a prefix of the records is recovered, and writing goes on.
func TestEveryCut(t *testing.T) {
	b, want := sound(t)
	most := 0
	for n := range len(b) {
		for _, tail := range [][]byte{nil, make([]byte, len(b)-n)} {
			dir := place(t, append(bytes.Clone(b[:n]), tail...))
			l, got, err := tryOpen(dir)
			if err != nil {
				if n < headerSize && tail != nil {
					continue // a damaged header with something behind it is refused
				}
				t.Fatalf("cut at %d: %v", n, err)
			}
			if len(got) < most && tail == nil {
				t.Fatalf("cut at %d: %d records, fewer than with less of the log", n, len(got))
			}
			most = max(most, len(got))
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("cut at %d: replayed %v", n, got)
				}
			}
			add(t, l, "more")
			shut(t, l)
			l, again, err := tryOpen(dir)
			if err != nil || fmt.Sprint(again) != fmt.Sprint(append(got, "more")) {
				t.Fatalf("cut at %d, written, opened: %v %v", n, again, err)
			}
			shut(t, l)
		}
	}
}

// TestEveryFlip flips every bit: damage to what was acknowledged is refused,
// never skipped, altered or reordered. Only the last batch may look torn.
func TestEveryFlip(t *testing.T) {
	b, want := sound(t)
	for n := range len(b) {
		for bit := range 8 {
			bad := bytes.Clone(b)
			bad[n] ^= 1 << bit
			dir := place(t, bad)
			l, got, err := tryOpen(dir)
			if err != nil {
				continue
			}
			if len(got) != len(want)-1 || fmt.Sprint(got) != fmt.Sprint(want[:len(got)]) {
				t.Fatalf("bit %d of byte %d: replayed %v", bit, n, got)
			}
			shut(t, l)
		}
	}
}

// faulty is a disk that fails when told to.
type faulty struct {
	File
	mu    *sync.Mutex
	short *bool
	sync  *error
}

func (f faulty) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *f.short {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, errors.New("no space left on device")
	}
	return f.File.Write(p)
}

func (f faulty) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *f.sync != nil {
		err := *f.sync
		*f.sync = nil // the next one would succeed: it must not be tried
		return err
	}
	return f.File.Sync()
}

func TestAFailureIsForEver(t *testing.T) {
	for name, arm := range map[string]func(short *bool, sync *error){
		"full disk":    func(short *bool, _ *error) { *short = true },
		"failed fsync": func(_ *bool, sync *error) { *sync = errors.New("input/output error") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var mu sync.Mutex
			var short bool
			var syncErr error
			l, err := Open(Options{Dir: dir, Create: func(path string) (File, error) {
				f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				return faulty{f, &mu, &short, &syncErr}, err
			}}, func([]byte) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			add(t, l, "safe")
			mu.Lock()
			arm(&short, &syncErr)
			mu.Unlock()
			seq, err := l.Append([]byte("lost"))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Wait(t.Context(), seq); err == nil {
				t.Fatal("a record was acknowledged that is not on disk")
			}
			mu.Lock()
			short = false
			mu.Unlock()
			if _, err := l.Append([]byte("later")); err == nil {
				t.Error("the log went on after a failure")
			}
			if l.Err() == nil || l.Close() == nil {
				t.Error("the failure is not told")
			}
			l, got, err := tryOpen(dir)
			if err != nil || len(got) == 0 || got[0] != "safe" {
				t.Fatalf("recovered %v %v", got, err)
			}
			shut(t, l)
		})
	}
}

// TestConcurrentAppendersAndSnapshots: with many writers and snapshots going
// on, every acknowledged record is there once after reopening.
func TestConcurrentAppendersAndSnapshots(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	const writers, each = 32, 100
	var mu sync.Mutex
	applied := map[string]bool{} // what a store would hold in memory
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				r := fmt.Sprintf("%d/%d", w, n)
				mu.Lock()
				applied[r] = true
				seq, err := l.Append([]byte(r))
				mu.Unlock()
				if err == nil {
					err = l.Wait(t.Context(), seq)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		err := l.Snapshot(func(emit func([]byte) error) error {
			mu.Lock()
			defer mu.Unlock()
			for r := range applied {
				if err := emit([]byte(r)); err != nil {
					return err
				}
			}
			return emit([]byte("end"))
		})
		if err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	shut(t, l)
	_, got := open(t, dir)
	seen := map[string]bool{}
	for _, r := range got {
		seen[r] = true
	}
	for r := range applied {
		if !seen[r] {
			t.Fatalf("%s is lost", r)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(encodeBatch(1, appendRecord(nil, []byte("record"))))
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, payload, size, err := decodeBatch(b)
		if err != nil {
			return
		}
		if size > len(b) || len(payload) != size-batchHeaderSize {
			t.Fatalf("%d bytes: payload %d, size %d", len(b), len(payload), size)
		}
		_, _ = eachRecord(payload, func([]byte) error { return nil })
	})
}

func BenchmarkAppendWait(b *testing.B) {
	for _, writers := range []int{1, 64, 512} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			l, err := Open(Options{Dir: b.TempDir()}, func([]byte) error { return nil })
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			record := make([]byte, 256)
			b.SetParallelism(max(1, writers/2))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					seq, err := l.Append(record)
					if err == nil {
						err = l.Wait(b.Context(), seq)
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
