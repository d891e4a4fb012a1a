package wal

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// lockDir takes the directory for this process; the kernel gives it back
// however the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("in use by another process: %w", err)
	}
	return f, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// files lists the snapshots and segments by number, and removes what an
// unfinished snapshot left.
func (l *Log) files() (snapshots, segments []uint64, err error) {
	entries, err := os.ReadDir(l.opts.Dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		kind, digits, found := strings.Cut(e.Name(), "-")
		if strings.HasSuffix(digits, ".tmp") {
			if err := os.Remove(filepath.Join(l.opts.Dir, e.Name())); err != nil {
				return nil, nil, err
			}
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 64)
		if !found || err != nil {
			continue
		}
		switch kind {
		case "snap":
			snapshots = append(snapshots, n)
		case "seg":
			segments = append(segments, n)
		}
	}
	slices.Sort(snapshots)
	slices.Sort(segments)
	return snapshots, segments, nil
}

// recover replays what is durable and opens a segment to go on in.
func (l *Log) recover(replay func(record []byte) error) error {
	snapshots, segments, err := l.files()
	if err != nil {
		return err
	}
	from := uint64(0)
	if len(snapshots) > 0 {
		from = snapshots[len(snapshots)-1]
		if err := l.readSnapshot(from, replay); err != nil {
			return err
		}
		l.seq = from - 1
	}
	// A crash after a snapshot was put in place leaves what it replaced.
	segments = slices.DeleteFunc(segments, func(n uint64) bool { return n < from })
	for i, n := range segments {
		if n != l.seq+1 {
			return fmt.Errorf("%s: begins at record %d, expected %d: what was before it is missing", segmentName(n), n, l.seq+1)
		}
		if err := l.readSegment(n, i == len(segments)-1, replay); err != nil {
			return err
		}
	}
	if err := l.removeBefore(from); err != nil {
		return err
	}
	err = l.begin()
	if err != nil && l.opts.AwaitRoom {
		l.full, err = err, nil
	}
	return err
}

// readSegment replays one segment. In the last one an unfinished batch at the
// end is cut off.
func (l *Log) readSegment(n uint64, last bool, replay func(record []byte) error) error {
	path := filepath.Join(l.opts.Dir, segmentName(n))
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	damaged := func(at int, err error) error { return fmt.Errorf("%s: offset %d: %w", path, at, err) }
	first, err := decodeHeader(segmentMagic, b)
	if err != nil || first != n {
		if last && !laterBatch(b) && len(b) <= headerSize {
			// The crash came while the segment was begun: nothing is in it.
			l.cut += int64(len(b))
			return os.Remove(path)
		}
		return damaged(0, errHeader)
	}
	l.size += int64(len(b))
	at := headerSize
	for at < len(b) {
		first, payload, size, err := decodeBatch(b[at:])
		if err != nil {
			if !last || laterBatch(b[at+1:]) {
				return damaged(at, err)
			}
			l.cut += int64(len(b) - at)
			return l.truncate(path, int64(at))
		}
		if first != l.seq+1 {
			return damaged(at, fmt.Errorf("batch begins at record %d, expected %d", first, l.seq+1))
		}
		count, err := eachRecord(payload, replay)
		if err != nil {
			return damaged(at, err)
		}
		l.seq += count
		at += size
	}
	if at == headerSize {
		return os.Remove(path) // empty: it is begun anew under the same name
	}
	return nil
}

// truncate cuts a torn tail for good, so that it can never be taken for
// damage behind newer batches.
func (l *Log) truncate(path string, size int64) error {
	if size == headerSize {
		return os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

func (l *Log) readSnapshot(n uint64, replay func(record []byte) error) error {
	path := filepath.Join(l.opts.Dir, snapshotName(n))
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	damaged := func(at int, err error) error { return fmt.Errorf("%s: offset %d: %w", path, at, err) }
	if first, err := decodeHeader(snapshotMagic, b); err != nil || first != n {
		return damaged(0, errHeader)
	}
	total := uint64(0)
	for at := headerSize; ; {
		number, payload, size, err := decodeBatch(b[at:])
		if err != nil {
			return damaged(at, err)
		}
		if len(payload) == 0 {
			if number != total || at+size != len(b) {
				return damaged(at, fmt.Errorf("ends after %d records, expected %d", total, number))
			}
			return nil
		}
		count, err := eachRecord(payload, replay)
		if err != nil {
			return damaged(at, err)
		}
		total += count
		at += size
	}
}

// Snapshot replaces the log so far by the records that write emits. Records
// appended while it runs come after them; so write may emit what is true at
// any time during its run. A failed snapshot changes nothing.
func (l *Log) Snapshot(write func(emit func(record []byte) error) error) error {
	l.snapshotMu.Lock()
	defer l.snapshotMu.Unlock()
	l.mu.Lock()
	if l.err != nil || l.full != nil || l.closing {
		defer l.mu.Unlock()
		return errors.Join(l.err, l.full, ErrClosed)
	}
	answer := make(chan rotated, 1)
	l.rotate = append(l.rotate, answer)
	before := l.size
	l.work.Signal()
	l.mu.Unlock()
	r := <-answer
	if r.err != nil {
		return r.err
	}
	if err := l.writeSnapshot(r.first, write); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	l.mu.Lock()
	l.size -= before
	l.mu.Unlock()
	return l.removeBefore(r.first)
}

func (l *Log) writeSnapshot(first uint64, write func(emit func(record []byte) error) error) (err error) {
	path := filepath.Join(l.opts.Dir, snapshotName(first))
	tmp := path + ".tmp"
	f, err := l.opts.Create(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(tmp)
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := w.Write(encodeHeader(snapshotMagic, first)); err != nil {
		return err
	}
	count := uint64(0)
	err = write(func(record []byte) error {
		if len(record) == 0 || len(record) > MaxRecord {
			return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(record))
		}
		count++
		_, err := w.Write(encodeBatch(count, appendRecord(nil, record)))
		return err
	})
	if err != nil {
		return err
	}
	if _, err := w.Write(encodeBatch(count, nil)); err != nil {
		return err
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(l.opts.Dir)
}

// removeBefore drops the snapshots and segments that snapshot n replaced.
func (l *Log) removeBefore(n uint64) error {
	snapshots, segments, err := l.files()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range snapshots {
		if s < n {
			errs = append(errs, os.Remove(filepath.Join(l.opts.Dir, snapshotName(s))))
		}
	}
	for _, s := range segments {
		if s < n {
			errs = append(errs, os.Remove(filepath.Join(l.opts.Dir, segmentName(s))))
		}
	}
	return errors.Join(errs...)
}
