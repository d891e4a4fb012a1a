package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/resilient"
)

const (
	// drainers is how many sessions are replayed at a time. Each waits for one
	// round trip after the other, so that many are under way.
	drainers = 256
	// failuresMost is how many sessions that cannot be replayed in a row end a
	// round.
	failuresMost = 64
	// Pauses between rounds in which nothing could be replayed.
	minPause, maxPause = 20 * time.Millisecond, 500 * time.Millisecond
	// rereads is how often a session is read at most until it is known.
	rereads = 3
	// tidyBytes is how much may lie in the log once nothing waits.
	tidyBytes = 1 << 20
	// turnWrites is how many writes of a session are replayed before others have
	// their turn.
	turnWrites = 1000
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
	for n := s.waiting.sessions(); n > 0 && failures.Load() < failuresMost && ctx.Err() == nil; n-- {
		q := s.waiting.pull()
		if q == nil {
			break
		}
		g.Go(func() error {
			switch s.drainSession(ctx, q, &replayed) {
			case drained:
				failures.Store(0)
			case unfinished:
				failures.Store(0)
				s.waiting.later(q, false)
			case refused:
				s.waiting.park(q)
			case unanswered:
				failures.Add(1)
				s.waiting.later(q, true)
			}
			return nil
		})
	}
	_ = g.Wait() // nothing returns one
	if moved = replayed.Load() > 0; !moved {
		s.waiting.setServing(false)
	}
	return moved
}

// progress is how far a session's writes were replayed.
type progress int

const (
	// drained: all of them, and the session has left.
	drained progress = iota
	// unfinished: as many as one turn allows.
	unfinished
	// unanswered: up to one that the store underneath did not answer.
	unanswered
	// refused: up to one that it refused for good, and the dead-letter queue is
	// full.
	refused
)

// drainSession replays a session's writes in order.
//
// After a crash, the writes whose end is not on disk are replayed again, which is
// harmless as long as they are few: a session remembers the latest updates by their
// ids, and the events of its log. So the record of a run must be durable before the
// run after the next one is replayed, and every record before several updates, before a
// write that ends the session, behind which nothing can be replayed again, and before
// the session is changed without us.
func (s *Store) drainSession(ctx context.Context, q *queue, replayed *atomic.Int64) progress {
	var record place // of the run before
	most := runEvents
	for turn := 0; ; {
		run, more := s.waiting.head(q, most)
		if len(run) > 0 {
			if w := run[0].write; w.End != nil || w.Delete || w.Update != nil && len(run) > 1 {
				if record.wait(ctx) != nil && ctx.Err() != nil {
					return unanswered
				}
			}
			err := s.Replay(ctx, merge(run))
			switch {
			case err != nil && !final(err):
				return unanswered
			case err != nil && len(run) > 1:
				most = 1 // find the one that is refused
				continue
			}
			s.waiting.setServing(true)
			at, p := s.settle(ctx, q, run, err)
			if p != drained {
				return p
			}
			if !adds(run[0]) && record.wait(ctx) != nil && ctx.Err() != nil {
				return unanswered
			}
			record, most = at, runEvents
			replayed.Add(int64(len(run)))
			turn += len(run)
		}
		switch {
		case turn >= turnWrites:
			return unfinished
		case more:
			continue
		case record.wait(ctx) != nil && ctx.Err() != nil, !s.seen(ctx, q.id):
			return unanswered
		case s.tryLeave(q):
			return drained
		}
	}
}

// tryLeave gives a session back to the store underneath; false when a write has
// been accepted meanwhile.
func (s *Store) tryLeave(q *queue) bool {
	lock := s.stripe(&s.sessions, q.id)
	lock.Lock()
	defer lock.Unlock()
	left := s.leave(q)
	if left {
		s.shadow.Forget(q.id)
	}
	return left
}

// merge returns a run of writes as one. It is accepted at the time of the last:
// a session that is live then was live at the times of the others.
func merge(run []*accepted) storage.Write {
	w := run[len(run)-1].write
	if len(run) == 1 {
		return w
	}
	w.Append = nil
	for _, a := range run {
		w.Append = append(w.Append, a.write.Append...)
	}
	if w.Update != nil {
		for _, a := range run[:len(run)-1] {
			w.Earlier = append(w.Earlier, a.write.Update)
		}
	}
	return w
}

// seen reads a session whose writes were replayed, so that what knows the last
// state of sessions, and forgot this one with each replay, knows it again: the
// next outage may come at once. The session stays here as long as it cannot be
// read.
func (s *Store) seen(ctx context.Context, id string) bool {
	// It was promised, so it is not shed under load.
	ctx = resilient.Unlimited(ctx)
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

// settle writes down that a run of writes was replayed, or that it is a dead
// letter, and returns where. With the log broken, memory alone knows; it is written
// anew by mend.
func (s *Store) settle(ctx context.Context, q *queue, run []*accepted, err error) (place, progress) {
	last := run[len(run)-1]
	dead := false
	if err != nil {
		superseded, gerr := s.superseded(ctx, last.write, err)
		if dead = !superseded; gerr != nil {
			return place{}, unanswered
		}
	}
	if dead && !s.bury(ctx, last, err) {
		return place{}, refused
	}
	at, werr := s.disk.appendEach(len(run), func(i int) ([]byte, error) {
		if dead {
			return deadRecord(run[i].seq, err.Error())
		}
		return doneRecord(run[i].seq)
	})
	if werr != nil {
		s.opts.Log.DebugContext(ctx, "what was replayed is not on disk yet", slog.Any("error", werr))
	}
	s.replayed(q, run)
	return at, drained
}

// bury makes a write that was refused for good a dead letter; false when the
// dead-letter queue is full.
func (s *Store) bury(ctx context.Context, a *accepted, reason error) bool {
	id := s.letterID(a.seq)
	if !s.letters.add(id, a, reason.Error(), s.opts.MaxLetters, s.opts.MaxLetterBytes) {
		s.board.Raise(ctx, lettersFull, "", fmt.Sprintf("the dead-letter queue of the journal is full (%d): the sessions of further refused writes wait, and so does every later write of theirs; retry or drop dead letters", s.letters.count()))
		return false
	}
	s.opts.Log.WarnContext(ctx, "an accepted write cannot be replayed and is a dead letter now",
		slog.String("id", id), slog.String("operation", operation(a.write)),
		slog.String("session", a.write.SessionID), slog.Any("error", reason))
	return true
}

// adds says whether a write only adds to what is there.
func adds(a *accepted) bool { return a.write.Append != nil || a.write.Extend != nil }

// superseded says whether nothing is lost by a write that was refused for good: no
// one misses the end of a session that is over, nor activity that changed no
// deadline. An extension is lost where the session has expired without it, and not
// where somebody has ended it; of one that is gone, that cannot be known.
func (s *Store) superseded(ctx context.Context, w storage.Write, err error) (bool, error) {
	switch over := errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrEnded); {
	case !over:
		return false, nil
	case w.End != nil, w.Delete, w.Extend != nil && !extends(w):
		return true, nil
	case !extends(w):
		return false, nil
	}
	sess, err := s.Store.Get(resilient.Unlimited(ctx), w.SessionID)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return false, err
	}
	return sess.GetPhase() == sessionv1.Session_ENDED, nil
}

// mend opens a broken log again and writes what waits into it.
func (s *Store) mend() {
	before := s.disk.failure()
	if before == nil {
		return
	}
	// A write on its way into a log that broke is not acknowledged, so those that
	// are here are all that count; and whoever accepts one may wait for this.
	err := s.disk.reopen(func() bool { return s.depth.Load() == 0 && s.letters.count() == 0 },
		func(put func(record []byte) error) error { return s.emit(put, s.waiting.all()) })
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
		s.mend() // at once: nothing on disk counts any more
		most = tidyBytes
	}
	if s.disk.size() < most || s.disk.failure() != nil {
		return
	}
	if err := s.disk.snapshot(func(put func(record []byte) error) error {
		s.accepting.Lock() // what is in the log that is replaced is known below
		writes := s.waiting.all()
		s.accepting.Unlock()
		return s.emit(put, writes)
	}); err != nil {
		s.opts.Log.Error("the journal goes on growing", slog.Any("error", err))
	}
}

// emit writes what counts: the journal's name, the dead letters, and the writes of
// sessions that wait, with those that were replayed.
func (s *Store) emit(put func(record []byte) error, writes []keptWrite) error {
	w := recordWriter{put: put}
	w.add(holderRecord(s.holder))
	for _, l := range s.letters.all() {
		w.add(l.write.encode())
		w.add(deadRecord(l.write.seq, l.reason))
	}
	for _, a := range writes {
		w.add(a.encode())
		if a.finished && !s.letters.has(s.letterID(a.seq)) {
			w.add(doneRecord(a.seq))
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
