package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// roomEvery is how often a log that AwaitRoom has opened is tried.
const roomEvery = time.Second

// begin starts the first segment of this process; where that fails, it leaves
// nothing behind that stands in the way of the next attempt.
func (l *Log) begin() error {
	err := l.startSegment(l.seq + 1)
	if err == nil {
		return nil
	}
	if l.file != nil {
		err = errors.Join(err, l.file.Close(), os.Remove(filepath.Join(l.opts.Dir, segmentName(l.seq+1))))
		l.file = nil
	}
	return fmt.Errorf("log cannot be written: %w", err)
}

// awaitRoom begins a segment once that is possible.
func (l *Log) awaitRoom() {
	defer close(l.waited)
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		l.mu.Lock()
		if l.full != nil {
			l.full = l.begin() // nothing is pending, so the writer rests
		}
		full := l.full
		l.mu.Unlock()
		if full == nil {
			return
		}
		select {
		case <-tick.C:
		case <-l.closed:
			return
		}
	}
}
