package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// errLeft: the session's writes were replayed before this one got its turn; it
// belongs to the store underneath again.
var errLeft = errors.New("session left the journal")

// wanted says whether a write that failed with err is to be accepted here: what
// the store underneath turned away for load is not.
func wanted(ctx context.Context, err error) bool {
	return errors.Is(err, storage.ErrUnavailable) && ctx.Err() == nil
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", storage.ErrUnavailable, err) }

// write asks the store underneath, and accepts the write here when that cannot
// answer or the session has writes waiting already.
func write[T any](ctx context.Context, s *Store, id string, ask func() (T, error), apply func(at time.Time) (T, *storage.Write, error)) (T, error) {
	s.awaitReplay(ctx, id)
	return writeWith(ctx, s, id, with{}, ask, apply)
}

// with is what some writes need to be accepted.
type with struct {
	// key is the request key that a session is created under.
	key string
	// base is what was known of the session before the store underneath was
	// asked, where its failure puts that in doubt.
	base *sessionv1.Session
	// cause is why the store underneath did not take the write, nil where it was
	// not asked.
	cause error
}

func writeWith[T any](ctx context.Context, s *Store, id string, o with, ask func() (T, error), apply func(at time.Time) (T, *storage.Write, error)) (T, error) {
	for {
		if o.cause = nil; !s.holds(id) {
			out, err := ask()
			if !wanted(ctx, err) {
				return out, err
			}
			o.cause = err
		}
		var out T
		at, err := s.accept(id, o, func(at time.Time) (w *storage.Write, err error) {
			out, w, err = apply(at)
			return w, err
		})
		if errors.Is(err, errLeft) {
			continue
		}
		if err == nil {
			err = at.wait(ctx)
		}
		if err != nil {
			var none T
			return none, err
		}
		s.opts.Marked(ctx)
		return out, nil
	}
}

// awaitReplay waits until the pending writes of sessions are replayed, for
// replayWait at most and half of the time that the caller has left. What it waits
// for goes to the store underneath then, so that the backlog only shrinks once
// that answers, however fast new writes come. It returns at once where nothing is
// being replayed.
func (s *Store) awaitReplay(ctx context.Context, ids ...string) {
	if s.depth.Load() == 0 {
		return
	}
	var all []<-chan struct{}
	for _, id := range ids {
		if settled, leave := s.waiting.await(id); settled != nil {
			defer leave()
			all = append(all, settled)
		}
	}
	if len(all) == 0 {
		return
	}
	most := s.opts.replayWait
	if until, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(until)/2)
	}
	over := time.NewTimer(most)
	defer over.Stop()
	for _, settled := range all {
		select {
		case <-settled:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// accept applies a write to the shadow and puts it into the log; it is safe
// once the place returned is durable.
func (s *Store) accept(id string, o with, apply func(at time.Time) (*storage.Write, error)) (place, error) {
	lock := s.stripe(&s.sessions, id)
	lock.Lock()
	defer lock.Unlock()
	if o.key != "" {
		lock := s.stripe(&s.requests, o.key)
		lock.Lock()
		defer lock.Unlock()
	}
	s.accepting.RLock()
	defer s.accepting.RUnlock()
	held := s.waiting.has(id)
	if !held && o.cause == nil {
		return place{}, errLeft
	}
	if err := errors.Join(s.disk.failure(), s.room()); err != nil {
		return place{}, unwritable(err)
	}
	var base *sessionv1.Session
	now, start := s.now(), ""
	if !held {
		start = s.start(now)
		if base = o.base; base == nil {
			var err error
			if base, _, err = s.opts.Base(id); errors.Is(err, storage.ErrNotFound) {
				return place{}, err
			}
		}
		if base != nil {
			s.shadow.Adopt(base, start)
		}
	}
	w, err := apply(now)
	if err == nil && w != nil {
		if w.Create != nil {
			s.shadow.Floor(id, start)
		}
		return s.enqueue(&accepted{seq: s.waiting.number(), write: *w, base: base, start: start})
	}
	if !held {
		s.shadow.Forget(id)
	}
	if err == nil {
		// Nothing changed; but what the answer rests on may wait for the disk.
		return s.disk.last()
	}
	if o.cause != nil && errors.Is(err, storage.ErrNotFound) && base == nil {
		return place{}, o.cause // it may well be there
	}
	return place{}, err
}

// start returns the cursor that the events of a session come after which are
// accepted from now on: the store underneath must be able to give them the same
// cursors later, so it is after those that it may have given until now, by its
// own clock, and after those that were given here.
func (s *Store) start(now time.Time) string {
	for {
		old, at := s.high.Load(), storage.Cursor{Millis: now.Add(clockMargin).UnixMilli()}
		if old != nil && at.Compare(*old) <= 0 {
			at.Millis = old.Millis + 1
		}
		if s.high.CompareAndSwap(old, &at) {
			return at.String()
		}
	}
}

// enqueue puts a write that the shadow has taken among those that wait. One
// that cannot be put into the log waits too, since the shadow shows it; it was
// not acknowledged.
func (s *Store) enqueue(a *accepted) (place, error) {
	record, err := a.encode()
	a.size = int64(len(record))
	var at place
	if err == nil {
		at, err = s.disk.append(record)
	}
	s.push(a, false)
	s.poke()
	return at, err
}

// unsure turns the shadow's word that a session is over into the truth: past a
// deadline that activity elsewhere, or activity that waits here, may have moved,
// nobody knows.
func (s *Store) unsure(ctx context.Context, id string, err error) error {
	if !errors.Is(err, storage.ErrEnded) {
		return err
	}
	if sess, gerr := s.shadow.Get(context.WithoutCancel(ctx), id); gerr == nil && sess.GetEndTime() == nil {
		return unavailable(errWaiting)
	}
	return err
}

// known returns ErrUnavailable where a caller expects a revision later than
// any that is known here.
func (s *Store) known(ctx context.Context, id string, revision int64) error {
	if sess, err := s.shadow.Get(context.WithoutCancel(ctx), id); err == nil && revision > sess.GetRevision() {
		return unavailable(errWaiting)
	}
	return nil
}

// Update changes a session.
func (s *Store) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	if u.WriteID == "" {
		u.WriteID = storage.NewWriteID()
	}
	return write(ctx, s, id, func() (*sessionv1.Session, error) { return s.Store.Update(ctx, id, u) },
		func(time.Time) (*sessionv1.Session, *storage.Write, error) {
			if err := s.known(ctx, id, u.IfRevision); err != nil {
				return nil, nil, err
			}
			out, err := s.shadow.Update(ctx, id, u)
			if err != nil {
				return nil, nil, s.unsure(ctx, id, err)
			}
			return out, &storage.Write{SessionID: id, At: out.GetUpdateTime().AsTime(), Update: &u}, nil
		})
}

// End ends a session.
func (s *Store) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	s.awaitReplay(ctx, id)
	return s.end(ctx, id, reason)
}

func (s *Store) end(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	base, _, _ := s.opts.Base(id)
	s.ahead(ctx, id, func() error { _, err := s.Store.End(ctx, id, reason); return err })
	return writeWith(ctx, s, id, with{base: base}, func() (*sessionv1.Session, error) { return s.Store.End(ctx, id, reason) },
		func(time.Time) (*sessionv1.Session, *storage.Write, error) {
			before, err := s.shadow.Get(ctx, id)
			if err != nil {
				return nil, nil, err
			}
			out, err := s.shadow.End(ctx, id, reason)
			switch {
			case err != nil:
				return nil, nil, err
			case before.GetEndTime() != nil:
				return out, nil, nil
			case out.GetPhase() != sessionv1.Session_ENDED:
				return nil, nil, s.unsure(ctx, id, storage.ErrEnded)
			}
			return out, s.told(ctx, &storage.Write{SessionID: id, At: out.GetEndTime().AsTime(), End: &storage.EndWrite{Reason: reason}}), nil
		})
}

// ahead lets an end take effect in the store underneath at once where the session's
// writes wait for an operator: everybody else would go on reading it as live. It is
// accepted behind these writes all the same, which are refused then.
func (s *Store) ahead(ctx context.Context, id string, end func() error) {
	if !s.waiting.isParked(id) {
		return
	}
	if err := end(); err != nil && !final(err) {
		s.opts.Log.DebugContext(ctx, "the end of a session waits behind its other writes", slog.Any("error", err))
	}
}

// Delete removes a session.
func (s *Store) Delete(ctx context.Context, id string) error {
	s.awaitReplay(ctx, id)
	base, _, _ := s.opts.Base(id)
	s.ahead(ctx, id, func() error { return s.Store.Delete(ctx, id) })
	_, err := writeWith(ctx, s, id, with{base: base}, func() (struct{}, error) { return struct{}{}, s.Store.Delete(ctx, id) },
		func(at time.Time) (struct{}, *storage.Write, error) {
			if err := s.shadow.Delete(ctx, id); err != nil {
				return struct{}{}, nil, err
			}
			return struct{}{}, &storage.Write{SessionID: id, At: at, Delete: true}, nil
		})
	return err
}

// Append appends events to a session's log.
func (s *Store) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	return write(ctx, s, id, func() ([]string, error) { return s.Store.Append(ctx, id, events) },
		func(at time.Time) ([]string, *storage.Write, error) {
			cursors, err := s.shadow.Append(ctx, id, events)
			if err != nil {
				return nil, nil, s.unsure(ctx, id, err)
			}
			told := make([]*sessionv1.Event, len(events))
			for i, e := range events {
				told[i] = storage.WithCursor(e, cursors[i])
			}
			return cursors, &storage.Write{SessionID: id, At: at, Append: told}, nil
		})
}

// told gives a write the time and the cursor of the lifecycle event that the
// shadow has appended for it: it is to get the same ones when it is replayed.
func (s *Store) told(ctx context.Context, w *storage.Write) *storage.Write {
	page, err := s.shadow.ListEvents(context.WithoutCancel(ctx), storage.EventQuery{SessionID: w.SessionID, Tail: 1})
	if err == nil && len(page.Events) > 0 {
		w.At, w.Cursor = page.Events[0].GetTime().AsTime(), page.Events[0].GetCursor()
	}
	return w
}
