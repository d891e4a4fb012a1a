package memory

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// moment is when a change takes place, and as of when: the same for a call, the
// time when it was accepted for a write that is replayed.
type moment struct {
	now, at  int64
	replayed bool
	// told is the cursor that a lifecycle event should get; empty for that of at.
	told string
}

func (s *Store) moment() moment {
	now := s.now()
	return moment{now: now, at: now}
}

// cursor is the one that an event gets in a log that ends with last: of a
// replayed one that which the caller was told, where there is still room for it.
func (m moment) cursor(last storage.Cursor, e *sessionv1.Event) storage.Cursor {
	if !m.replayed {
		return next(last, m.at)
	}
	return follow(last, e.GetCursor(), m.at)
}

// follow is the cursor told, that of at where there is none, or else the one
// after last.
func follow(last storage.Cursor, told string, at int64) storage.Cursor {
	if told == "" {
		return next(last, at)
	}
	if c, err := storage.ParseCursor("cursor", told); err == nil && c.Compare(last) > 0 {
		return c
	}
	return storage.Cursor{Millis: last.Millis, Seq: last.Seq + 1}
}

// Replay applies a write as of the time when it was accepted.
func (s *Store) Replay(ctx context.Context, w storage.Write) error {
	if err := w.Check(); err != nil {
		return err
	}
	m := moment{now: s.now(), at: w.At.UnixMilli(), replayed: true, told: w.Cursor}
	var err error
	switch {
	case w.Create != nil:
		_, _, err = s.create(ctx, w.Create.Session, w.Create.RequestKey, m)
	case w.Update != nil:
		for _, u := range w.Updates() {
			if _, err = s.update(ctx, w.SessionID, u, m); err != nil {
				break
			}
		}
	case w.End != nil:
		_, err = s.end(ctx, w.SessionID, w.End.Reason, m)
	case w.Delete:
		if err = s.delete(ctx, w.SessionID, m); errors.Is(err, storage.ErrNotFound) {
			err = nil
		}
	case w.Append != nil:
		_, err = s.append(ctx, w.SessionID, w.Append, m)
	default:
		err = s.replayExtend(ctx, w, m)
	}
	return storage.Undecided(err)
}

func (s *Store) replayExtend(ctx context.Context, w storage.Write, m moment) error {
	if err := s.writable(ctx); err != nil {
		return err
	}
	a := *w.Extend
	a.SessionID = w.SessionID
	r, seq, err := s.extend(a, m)
	if err == nil {
		err = s.settle(ctx, seq)
	}
	if err != nil {
		return err
	}
	return w.Outcome(r.GetOutcome())
}

// holds are from when on each holder holds the sweep, in Unix milliseconds.
type holds struct {
	mu   sync.Mutex
	from map[string]int64
}

// set takes a hold, or gives it up for 0.
func (h *holds) set(holder string, from int64) {
	if from == 0 {
		delete(h.from, holder)
	} else {
		h.from[holder] = from
	}
}

// earliest returns the earliest hold that is not before least, the end of time
// for none.
func (h *holds) earliest(least int64) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := int64(math.MaxInt64)
	for _, from := range h.from {
		if from >= least {
			out = min(out, from)
		}
	}
	return out
}

// Hold makes sweeps leave alone what is due only at from or later.
func (s *Store) Hold(ctx context.Context, holder string, from time.Time) error {
	if err := s.writable(ctx); err != nil {
		return err
	}
	at := int64(0)
	if !from.IsZero() {
		at = from.UnixMilli()
	}
	least := s.now() - storage.HoldLife(s.opts.SettleMax).Milliseconds()
	s.holds.mu.Lock()
	tx := &txn{store: s, unlock: s.holds.mu.Unlock}
	for old, from := range s.holds.from {
		if from < least {
			s.holds.set(old, 0)
			tx.hold(old, 0)
		}
	}
	s.holds.set(holder, at)
	tx.hold(holder, at)
	return s.commit(ctx, tx)
}

// bury remembers that a session was deleted, so that a write that is replayed
// late does not bring it back: for as long as one that has ended is kept.
func (sh *shard) bury(id string, until int64) {
	if old, ok := sh.gone[id]; ok {
		sh.ungone.Delete(due{old, id})
	}
	sh.gone[id] = until
	sh.ungone.ReplaceOrInsert(due{until, id})
}

// unbury forgets what was deleted long ago.
func (sh *shard) unbury(now int64) {
	for {
		d, ok := sh.ungone.Min()
		if !ok || d.at > now {
			return
		}
		sh.exhume(d.id)
	}
}

func (sh *shard) exhume(id string) {
	sh.ungone.Delete(due{sh.gone[id], id})
	delete(sh.gone, id)
}

// Adopt takes over a session that is kept elsewhere, with its deadline, its
// counts, its revision and whether it is over, and without any event. The next
// event of its log comes after the cursor last, empty where that is not known.
// One that is here is left alone. What of its activity has extended it is not
// known: all up to the last one counts as such, so that none does twice.
func (s *Store) Adopt(in *sessionv1.Session, last string) {
	sh := s.shardOf(in.GetId())
	if sh == nil {
		return
	}
	now := s.now()
	sh.mu.Lock()
	tx := s.begin(sh)
	if sh.sessions[in.GetId()] == nil {
		x := newSession(in, "", now)
		if x.state.Count > 0 {
			x.state.LastCause, x.state.Forgotten = x.state.LastActivity, x.state.LastActivity
		}
		if end := in.GetEndTime(); end != nil {
			x.over, x.state.Over = sessionv1.Session_ENDED, true
			if in.GetPhase() == sessionv1.Session_EXPIRED {
				x.over = sessionv1.Session_EXPIRED
			}
			x.purgeAt = lifetime.Millis(end) + s.opts.Retention.Milliseconds()
			x.refresh(now, nil)
		}
		if at, err := storage.ParseCursor("last", last); err == nil {
			x.log.last, x.log.trimmed = at, at
		}
		sh.enlist(x)
		tx.put(x)
		tx.logAt(x)
	}
	// Nothing was promised to anybody: it need not be durable yet.
	_, _ = s.write(tx)
}

// Floor lets the next event of a session's log come after a cursor.
func (s *Store) Floor(id, last string) {
	sh := s.shardOf(id)
	at, err := storage.ParseCursor("last", last)
	if sh == nil || err != nil {
		return
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if x := sh.sessions[id]; x != nil && at.Compare(x.log.last) > 0 {
		x.log.last = at
	}
}

// Forget drops a session and its log, with no event, and wakes who waits for
// one.
func (s *Store) Forget(id string) {
	sh := s.shardOf(id)
	if sh == nil {
		return
	}
	sh.mu.Lock()
	tx := s.begin(sh)
	if x := sh.sessions[id]; x != nil {
		sh.remove(x)
		tx.remove(id)
	}
	if _, ok := sh.gone[id]; ok {
		sh.exhume(id)
		tx.gone(id, 0)
	}
	_, _ = s.write(tx)
}
