package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

// disk is the journal's log, which dies with its first failure and is opened
// again then.
type disk struct {
	opts wal.Options

	mu  sync.RWMutex
	log *wal.Log // nil while there is none
	err error    // why there is none
}

// place is where a record is in a log. The zero place is durable.
type place struct {
	log *wal.Log
	seq uint64
}

// open reads what is there, also from a full disk: what was accepted is replayed all
// the same.
func (d *disk) open(add func(record []byte) error) error {
	opts := d.opts
	opts.AwaitRoom = true
	log, err := wal.Open(opts, add)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log, d.err = log, err
	if err != nil {
		d.log = nil
	}
	return err
}

// nameFile keeps the journal's name where the log was erased.
const nameFile = "name"

// name returns the name that setName has left, empty for none.
func (d *disk) name() string {
	b, err := os.ReadFile(filepath.Join(d.opts.Dir, nameFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (d *disk) setName(name string) error {
	return os.WriteFile(filepath.Join(d.opts.Dir, nameFile), []byte(name+"\n"), 0o600)
}

// failure returns why nothing can be written, nil while it can.
func (d *disk) failure() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.log == nil {
		return d.err
	}
	return d.log.Err()
}

// append puts a record at the end; it is durable once wait returns nil.
func (d *disk) append(record []byte) (place, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.log == nil {
		return place{}, unwritable(d.err)
	}
	seq, err := d.log.Append(record)
	if err != nil {
		return place{}, unwritable(err)
	}
	return place{d.log, seq}, nil
}

// appendEach puts n records at the end.
func (d *disk) appendEach(n int, record func(i int) ([]byte, error)) (at place, err error) {
	for i := range n {
		b, err := record(i)
		if err != nil {
			return place{}, err
		}
		if at, err = d.append(b); err != nil {
			return place{}, err
		}
	}
	return at, nil
}

// last is the place of the latest record. Without a log nothing is durable that
// an answer could rest on.
func (d *disk) last() (place, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.log == nil {
		return place{}, unwritable(d.err)
	}
	return place{d.log, d.log.Appended()}, nil
}

// size is how much was written since the last snapshot, in bytes.
func (d *disk) size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.log == nil {
		return 0
	}
	return d.log.Size()
}

func (p place) wait(ctx context.Context) error {
	if p.log == nil || p.seq == 0 {
		return nil
	}
	err := p.log.Wait(ctx, p.seq)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return unwritable(err)
}

func unwritable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w: %w", storage.ErrUnavailable, storage.ErrJournal, err)
}

// snapshot replaces what is on disk by what emit writes.
func (d *disk) snapshot(write func(emit func(record []byte) error) error) error {
	d.mu.RLock()
	log := d.log
	d.mu.RUnlock()
	if log == nil {
		return nil
	}
	return log.Snapshot(write)
}

// reopen opens the directory again after a failure and puts what write emits in
// the place of what is there: memory knows better than a log that broke off. Where that
// cannot be written and nothing counts any more, what is there is erased: it would be
// replayed once more after the next start, when others have changed the sessions.
func (d *disk) reopen(nothing func() bool, write func(emit func(record []byte) error) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.log != nil {
		if d.log.Err() == nil {
			return nil
		}
		// Its failure is known; closing gives the directory up.
		_ = d.log.Close()
		d.log = nil
	}
	if d.err = wal.Probe(d.opts); d.err != nil {
		if nothing() {
			d.err = errors.Join(d.err, wal.Erase(d.opts.Dir))
		}
		return d.err
	}
	log, err := wal.Open(d.opts, func([]byte) error { return nil })
	if err != nil {
		d.err = err
		return err
	}
	if err := log.Snapshot(write); err != nil {
		d.err = errors.Join(err, log.Close())
		return d.err
	}
	d.log, d.err = log, nil
	return nil
}

func (d *disk) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.log == nil {
		return nil
	}
	err := d.log.Close()
	d.log, d.err = nil, storage.ErrClosed
	return err
}
