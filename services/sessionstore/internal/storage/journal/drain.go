package journal

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// drainers is how many sessions are replayed at a time, and how many that
	// cannot be replayed in a row end a round.
	drainers = 64
	// Pauses between rounds in which nothing could be replayed.
	minPause, maxPause = 20 * time.Millisecond, 500 * time.Millisecond
	// rereads is how often a session is read at most until it is known.
	rereads = 3
	// tidyBytes is how much may lie in the log once nothing waits.
	tidyBytes = 1 << 20
)

// drain replays what waits, and keeps the log in order, until ctx ends.
func (s *Store) drain(ctx context.Context) {
	mend := time.NewTicker(s.opts.reopenEvery)
	defer mend.Stop()
	length, wake := minPause, s.wake
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-mend.C:
			s.mend()
			continue
		case <-wake:
		case <-again:
		}
		moved := s.round(ctx)
		s.tidy()
		switch {
		case s.depth.Load() == 0:
			length, wake, again = minPause, s.wake, nil
		case moved:
			length, wake, again = minPause, nil, time.After(0)
		default:
			// What is accepted meanwhile waits too, and wakes nobody.
			wake, again = nil, time.After(length)
			length = min(2*length, maxPause)
		}
	}
}

// round tries every session that waits once, and returns whether anything was
// replayed. Those that cannot be replayed go behind the others, so that a dead
// node of a cluster stands in nobody's way.
func (s *Store) round(ctx context.Context) (moved bool) {
	var g errgroup.Group
	g.SetLimit(drainers)
	var failures, replayed atomic.Int64
	for n := s.waiting.sessions(); n > 0 && failures.Load() < drainers && ctx.Err() == nil; n-- {
		q := s.waiting.pull()
		if q == nil {
			break
		}
		g.Go(func() error {
			if s.drainSession(ctx, q, &replayed) {
				failures.Store(0)
				return nil
			}
			failures.Add(1)
			s.waiting.later(q)
			return nil
		})
	}
	_ = g.Wait() // nothing returns one
	return replayed.Load() > 0
}

// drainSession replays a session's writes in order; false when some are left.
func (s *Store) drainSession(ctx context.Context, q *queue, replayed *atomic.Int64) bool {
	for {
		a, then := s.waiting.head(q)
		if a != nil {
			err := s.Replay(ctx, a.write)
			if err != nil && !final(err) {
				return false
			}
			if !s.settled(ctx, q, a, then, err) {
				return false
			}
			replayed.Add(1)
		}
		if then != nil {
			continue
		}
		if !s.seen(ctx, q.id) {
			return false
		}
		lock := s.stripe(&s.sessions, q.id)
		lock.Lock()
		left := s.leave(q)
		if left {
			s.shadow.Forget(q.id)
		}
		lock.Unlock()
		if left {
			return true
		}
	}
}

// seen reads a session whose writes were replayed, so that what knows the last
// state of sessions, and forgot this one with each replay, knows it again: the
// next outage may come at once. The session stays here as long as it cannot be
// read.
func (s *Store) seen(ctx context.Context, id string) bool {
	for range rereads {
		if _, err := s.Store.Get(ctx, id); err != nil && !final(err) {
			return false
		}
		// Replays of other sessions may keep an answer from being believed.
		if _, _, err := s.opts.Base(id); !errors.Is(err, storage.ErrUnavailable) {
			break
		}
	}
	return true
}

// final says whether an error of Replay is the write's end: it was not applied
// and never will be as it is.
func final(err error) bool {
	for _, not := range []error{storage.ErrUnavailable, storage.ErrExhausted, storage.ErrClosed, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, not) {
			return false
		}
	}
	return true
}

// settled writes down that a write was replayed, or that it is a dead letter. The
// log must know before the next one is replayed, and before the session is
// changed without us: after a crash the write comes again, and would then be a
// stale one. Only events and reports do not mind that more of them came after.
func (s *Store) settled(ctx context.Context, q *queue, a, then *accepted, err error) bool {
	record, eerr := doneRecord(a.seq)
	if err != nil && !moot(a.write, err) {
		record, eerr = deadRecord(a.seq, err.Error())
		s.letters.add(s.letterID(a.seq), a, err.Error())
		s.opts.Log.WarnContext(ctx, "an accepted write cannot be replayed and is a dead letter now",
			slog.String("id", s.letterID(a.seq)), slog.String("operation", operation(a.write)),
			slog.String("session", a.write.SessionID), slog.Any("error", err))
	}
	if eerr == nil {
		// With the log broken, memory alone knows; it is written anew by mend.
		if at, err := s.disk.append(record); err == nil && (then == nil || !adds(a) || !adds(then)) {
			if at.wait(ctx) != nil && ctx.Err() != nil {
				return false
			}
		}
	}
	s.replayed(q)
	return true
}

// adds says whether a write only adds to what is there.
func adds(a *accepted) bool { return a.write.Append != nil || a.write.Extend != nil }

// moot says whether nothing is lost by a write that cannot be replayed: nobody
// misses the activity in a session that is over, nor the end of one that is
// gone.
func moot(w storage.Write, err error) bool {
	over := errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrEnded)
	return over && (w.Extend != nil || w.End != nil || w.Delete)
}

// mend opens a broken log again and writes what waits into it.
func (s *Store) mend() {
	before := s.disk.failure()
	if before == nil {
		return
	}
	// A write on its way into a log that broke is not acknowledged, so those that
	// are here are all that count; and whoever accepts one may wait for this.
	err := s.disk.reopen(func(put func(record []byte) error) error { return s.emit(put, s.waiting.all()) })
	if err != nil {
		s.opts.Log.Debug("the journal still cannot be written", slog.Any("error", err))
		return
	}
	s.opts.Log.Info("the journal can be written again", slog.Any("was", before))
}

// tidy replaces a log that has grown by what still counts.
func (s *Store) tidy() {
	most := 2 * s.opts.MaxBytes
	if s.depth.Load() == 0 {
		most = tidyBytes
	}
	if s.disk.size() < most || s.disk.failure() != nil {
		return
	}
	if err := s.disk.snapshot(func(put func(record []byte) error) error {
		s.accepting.Lock() // what is in the log that is replaced is known below
		queues := s.waiting.all()
		s.accepting.Unlock()
		return s.emit(put, queues)
	}); err != nil {
		s.opts.Log.Error("the journal goes on growing", slog.Any("error", err))
	}
}

// emit writes what counts: the journal's name, the dead letters, and the
// sessions that wait, with what was replayed of them.
func (s *Store) emit(put func(record []byte) error, queues []queue) error {
	w := recordWriter{put: put}
	w.add(holderRecord(s.holder))
	for _, l := range s.letters.all() {
		w.add(l.write.encode())
		w.add(deadRecord(l.write.seq, l.reason))
	}
	for _, q := range queues {
		for i, a := range q.writes {
			w.add(a.encode())
			if i < q.next && !s.letters.has(s.letterID(a.seq)) {
				w.add(doneRecord(a.seq))
			}
		}
	}
	return w.err
}

// recordWriter puts records until one fails.
type recordWriter struct {
	put func(record []byte) error
	err error
}

func (w *recordWriter) add(record []byte, err error) {
	if w.err == nil {
		w.err = err
	}
	if w.err == nil {
		w.err = w.put(record)
	}
}
