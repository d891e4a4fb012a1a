// Package wal is a log of records on disk with group commit and snapshots.
//
// What was waited for is on disk; a crash can only lose what nobody was told
// is safe. Records that are appended together are written as one batch under
// one checksum and made durable by one fsync.
//
//	snap-N      what was true before segment N, complete or not there at all
//	seg-N       batches, N being the sequence number of its first record
//	LOCK        held by the process that uses the directory
package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const (
	// MaxRecord bounds a record's size in bytes.
	MaxRecord = 64 << 20
	// maxPending bounds what waits for the disk; Append blocks beyond it.
	maxPending = 64 << 20
)

var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("log is closed")
	// ErrTooLarge is returned for a record beyond MaxRecord or an empty one.
	ErrTooLarge = errors.New("record is empty or too large")
)

// File is what the log needs of a file.
type File interface {
	io.Writer
	Sync() error
	Close() error
}

// Options configure a log.
type Options struct {
	// Dir is created where it is missing.
	Dir string
	// SegmentBytes is when a new segment is begun; default 64 MiB.
	SegmentBytes int64
	// Create makes a new file for writing; os.OpenFile by default. Tests use it
	// to make the disk fail.
	Create func(path string) (File, error)
	// AwaitRoom lets Open succeed although nothing can be written, as long as all
	// that is there can be read. Append fails then, and Err says why, until there is
	// room, which is tried about every second.
	AwaitRoom bool
}

func (o Options) withDefaults() Options {
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = 64 << 20
	}
	if o.Create == nil {
		o.Create = func(path string) (File, error) {
			return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		}
	}
	return o
}

// probeBytes is what Probe writes.
const probeBytes = 64 << 10

// Probe returns why nothing can be written to the directory, nil where a small
// file can. It costs far less than Open, which reads all that is there.
func Probe(opts Options) error {
	opts = opts.withDefaults()
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(opts.Dir, "probe-0.tmp")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := opts.Create(path)
	if err != nil {
		return err
	}
	n, err := f.Write(make([]byte, probeBytes))
	if err == nil && n < probeBytes {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), os.Remove(path))
}

// Erase removes a log that nobody has open, which works on a full disk, too. The newest
// file goes first: what a crash leaves of it is a log without an end.
func Erase(dir string) error {
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	l := &Log{opts: Options{Dir: dir}}
	snapshots, segments, err := l.files()
	for _, n := range slices.Backward(segments) {
		err = errors.Join(err, os.Remove(filepath.Join(dir, segmentName(n))))
	}
	for _, n := range slices.Backward(snapshots) {
		err = errors.Join(err, os.Remove(filepath.Join(dir, snapshotName(n))))
	}
	return errors.Join(err, syncDir(dir), lock.Close())
}

// Log is an open log. Its methods are safe for concurrent use.
type Log struct {
	opts Options
	lock *os.File
	cut  int64

	mu      sync.Mutex
	work    sync.Cond // the writer waits for something to do
	room    sync.Cond // appenders wait for the writer
	pending *batch    // never nil
	writing *batch    // nil while the writer rests
	seq     uint64    // of the last record appended
	err     error     // the first failure; the log is dead from then on
	full    error     // why no segment could be begun yet, nil once one is
	closing bool
	rotate  []chan rotated
	size    int64 // bytes since the last snapshot

	// Owned by the writer.
	file     File
	fileSize int64

	done chan struct{}
	// closed ends the wait for room, which is over when waited is closed.
	closed, waited chan struct{}
	snapshotMu     sync.Mutex
}

// batch is what one write and one fsync make durable.
type batch struct {
	first, last uint64
	payload     []byte
	done        chan struct{}
	err         error
}

type rotated struct {
	first uint64
	err   error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Open takes the directory over and hands every durable record to replay: the
// newest snapshot's, then those of the segments after it, in order. An
// unfinished batch at the very end is cut off (see Cut); any other damage is
// an error that names file and offset.
func Open(opts Options, replay func(record []byte) error) (*Log, error) {
	opts = opts.withDefaults()
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{opts: opts, lock: lock, pending: newBatch(), done: make(chan struct{}), closed: make(chan struct{}), waited: make(chan struct{})}
	l.work.L, l.room.L = &l.mu, &l.mu
	if err := l.recover(replay); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	go l.write()
	go l.awaitRoom()
	return l, nil
}

// Cut returns how many bytes of an unfinished batch Open cut off.
func (l *Log) Cut() int64 { return l.cut }

// Append adds a record to the end and returns its sequence number, 1 and up.
// It copies the record, and blocks only while too much waits for the disk.
func (l *Log) Append(record []byte) (uint64, error) {
	if len(record) == 0 || len(record) > MaxRecord {
		return 0, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(record))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full != nil {
		return 0, l.full
	}
	for l.err == nil && !l.closing && len(l.pending.payload) > maxPending {
		l.room.Wait()
	}
	if l.err != nil {
		return 0, l.err
	}
	if l.closing {
		return 0, ErrClosed
	}
	l.seq++
	if l.pending.first == 0 {
		l.pending.first = l.seq
	}
	l.pending.last = l.seq
	l.pending.payload = appendRecord(l.pending.payload, record)
	l.work.Signal()
	return l.seq, nil
}

// Appended returns the sequence number of the last record appended.
func (l *Log) Appended() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// Err returns why nothing can be appended, nil while it can.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.full)
}

// Size returns the bytes written since the last snapshot.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Wait returns when every record up to seq is durable, or with the log's
// failure, or when ctx ends; then the record may or may not become durable.
func (l *Log) Wait(ctx context.Context, seq uint64) error {
	l.mu.Lock()
	var b *batch
	switch {
	case l.pending.first != 0 && seq >= l.pending.first:
		b = l.pending
	case l.writing != nil && seq >= l.writing.first:
		b = l.writing
	}
	err := l.err
	l.mu.Unlock()
	if b == nil {
		// Durable already, unless the log died with it.
		return err
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write is the writer: it takes all that is pending, writes it, syncs, and
// tells who waits.
func (l *Log) write() {
	defer close(l.done)
	for {
		l.mu.Lock()
		for l.pending.first == 0 && len(l.rotate) == 0 && !l.closing {
			l.work.Wait()
		}
		requests := l.rotate
		if l.pending.first == 0 && len(requests) == 0 {
			l.mu.Unlock()
			return // closing, and nothing is left
		}
		l.rotate = nil
		// With nothing pending the batch stays where it is, for appenders alone.
		var b *batch
		if l.pending.first != 0 {
			b, l.pending = l.pending, newBatch()
			l.writing = b
		}
		err, next := l.err, l.seq+1
		l.room.Broadcast()
		l.mu.Unlock()

		var n int
		if err == nil && b != nil {
			n, err = l.flush(b)
		}
		if err == nil && (len(requests) > 0 || l.fileSize > l.opts.SegmentBytes) {
			err = l.startSegment(next)
		}
		l.mu.Lock()
		if err != nil && l.err == nil {
			// For ever: after a failed fsync the kernel may have dropped the dirty
			// pages and report the next fsync as fine, so trying again would
			// acknowledge what is not on disk.
			l.err = fmt.Errorf("log failed: %w", err)
		}
		err = l.err
		l.writing = nil
		l.size += int64(n)
		l.room.Broadcast()
		l.mu.Unlock()
		if b != nil {
			b.err = err
			close(b.done)
		}
		for _, r := range requests {
			r <- rotated{next, err}
		}
	}
}

// flush writes a batch and syncs it.
func (l *Log) flush(b *batch) (int, error) {
	frame := encodeBatch(b.first, b.payload)
	n, err := l.file.Write(frame)
	if err == nil && n < len(frame) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return n, err
	}
	l.fileSize += int64(n)
	return n, l.file.Sync()
}

// startSegment closes the current segment and begins one whose first record
// has the sequence number first.
func (l *Log) startSegment(first uint64) error {
	path := filepath.Join(l.opts.Dir, segmentName(first))
	if l.file != nil {
		if l.fileSize == headerSize {
			return nil // empty: it is that segment already
		}
		if err := l.file.Close(); err != nil {
			return err
		}
		l.file = nil
	}
	f, err := l.opts.Create(path)
	if err != nil {
		return err
	}
	l.file, l.fileSize = f, headerSize
	if _, err := f.Write(encodeHeader(segmentMagic, first)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDir(l.opts.Dir)
}

// Close makes everything appended durable and gives the directory up. Closing
// again returns nil.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		<-l.done
		return nil
	}
	l.closing = true
	l.work.Signal()
	l.room.Broadcast()
	close(l.closed)
	l.mu.Unlock()
	<-l.done
	<-l.waited
	var err error
	if l.file != nil {
		err = l.file.Close()
	}
	l.mu.Lock()
	failure := l.err
	l.mu.Unlock()
	return errors.Join(failure, err, l.lock.Close())
}
