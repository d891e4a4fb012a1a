package memory

import (
	"context"
	"errors"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Extend judges activities.
func (s *Store) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	out := make([]storage.ExtendResult, len(items))
	last := uint64(0)
	for i, a := range items {
		var seq uint64
		out[i].Response, seq, out[i].Err = s.extend(a, s.moment())
		last = max(last, seq)
	}
	// One wait for all: the log's order is the order of the items.
	if err := s.settle(ctx, last); err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Store) extend(a storage.Activity, m moment) (*sessionv1.ExtendTTLResponse, uint64, error) {
	sh := s.shardOf(a.SessionID)
	if sh == nil {
		return lifetime.Missing(), 0, nil
	}
	now := m.at // it is judged as of then
	at := now
	if !a.Time.IsZero() {
		at = a.Time.UnixMilli()
	}
	sh.mu.Lock()
	x := sh.sessions[a.SessionID]
	if x == nil {
		sh.mu.Unlock()
		return lifetime.Missing(), s.lastWrite(), nil
	}
	before := x.state
	outcome, after := lifetime.Extend(x.terms, before, at, a.EventID, now)
	if d := lifetime.NewDecision(outcome, before, after, at, now, a.Kind, a.EventID, 0); !m.replayed || !x.history.Knows(d) {
		x.remember(d, a)
	}
	resp := lifetime.Response(outcome, x.terms, before, after, at, x.over, x.view.GetTtlPolicy(), now)
	if after.LastActivity == before.LastActivity && outcome != sessionv1.ExtendTTLResponse_EXTENDED {
		sh.mu.Unlock()
		// The answer may rest on a change that still waits for the disk: who is
		// told that an activity has counted already does not send it again.
		return resp, s.lastWrite(), nil
	}
	tx := s.begin(sh)
	if outcome == sessionv1.ExtendTTLResponse_EXTENDED {
		sh.unschedule(x)
		x.state = after
		sh.schedule(x)
		x.refresh(m.now, func(v *sessionv1.Session) { v.Revision++ })
		s.lifecycle(tx, x, storage.Lifecycle{
			Type: storage.TypeExtended, At: now, Cursor: m.told, Before: before.Expire, Expire: after.Expire, Count: after.Count, Max: x.terms.Max,
			ActivityTime: min(at, now), ActivityKind: a.Kind, CauseEventID: a.EventID, Traceparent: a.Traceparent,
		}, m.now)
	} else {
		x.state = after
		x.refresh(m.now, nil)
	}
	tx.hot(x)
	tx.history(x)
	seq, err := s.write(tx)
	return resp, seq, err
}

// remember adds a decision to the session's history.
func (x *session) remember(d lifetime.Decision, a storage.Activity) {
	if x.history.Repeats(d) {
		return
	}
	counts, sum := a.Stands()
	d.Activities = sum
	x.history = x.history.Add(d, counts, x.state.LastActivity)
}

// Explain tells what became of a session's activity.
func (s *Store) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	if err := s.usable(ctx); err != nil {
		return storage.Explanation{}, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return storage.Explanation{}, storage.ErrNotFound
	}
	sh.mu.Lock()
	x := sh.sessions[id]
	if x == nil {
		sh.mu.Unlock()
		return storage.Explanation{}, storage.ErrNotFound
	}
	h, terms := x.history, x.terms
	sh.mu.Unlock()
	return storage.Explain(h, terms), nil
}

// Sweep does what is due on every shard.
func (s *Store) Sweep(ctx context.Context) (storage.SweepResult, error) {
	var sum storage.SweepResult
	var errs []error
	for _, sh := range s.shards {
		if err := s.writable(ctx); err != nil {
			return sum, err
		}
		r, err := s.sweepShard(ctx, sh)
		errs = append(errs, err)
		sum.Warned += r.Warned
		sum.Expired += r.Expired
		sum.Purged += r.Purged
		sum.Trimmed += r.Trimmed
		sum.Held += r.Held
	}
	s.maybeSnapshot() //nolint:contextcheck // a snapshot outlives the sweep that starts it
	return sum, errors.Join(errs...)
}

// sweepBatch bounds how much of a shard is swept under one hold of its lock.
const sweepBatch = 500

func (s *Store) sweepShard(ctx context.Context, sh *shard) (storage.SweepResult, error) {
	var r storage.SweepResult
	for {
		now := s.now()
		sh.mu.Lock()
		tx := s.begin(sh)
		// As of before the sweep: what it appends itself holds nobody up.
		watermark := sh.feed.settled()
		from := s.holds.earliest(now - storage.HoldLife(s.opts.SettleMax).Milliseconds())
		warned, looked := s.warn(tx, now, from)
		expired, held := s.expire(tx, now, watermark, from)
		purged := s.purge(tx, now)
		r.Warned += warned
		r.Expired += expired
		r.Purged += purged
		r.Held = held
		r.Trimmed += sh.feed.trim(s.feedHorizon(now))
		if err := s.commit(ctx, tx); err != nil {
			return r, err
		}
		if max(looked, expired, purged) < sweepBatch {
			return r, nil
		}
	}
}

// warn leaves alone what is due at from or later.
func (s *Store) warn(tx *txn, now, from int64) (warned, looked int) {
	sh := tx.shard
	settle := s.opts.SettleMax.Milliseconds()
	var list []*session
	sh.warnings.Ascend(func(d due) bool {
		if d.at >= now || len(list) == sweepBatch || d.at >= from && now <= d.at+settle {
			return false
		}
		list = append(list, sh.sessions[d.id])
		return true
	})
	for _, x := range list {
		sh.warnings.Delete(due{x.state.Expire - x.terms.ExtendBelow, x.view.GetId()})
		x.warned = x.state.Expire
		tx.hot(x)
		if x.state.Expire <= now {
			continue // too late to warn of, also after a restart or when the clock is set back
		}
		s.lifecycle(tx, x, storage.Lifecycle{Type: storage.TypeExpiring, At: now, Expire: x.state.Expire}, now)
		warned++
	}
	return warned, len(list)
}

// expire leaves alone what is due at from or later.
func (s *Store) expire(tx *txn, now, watermark, from int64) (expired, held int) {
	sh := tx.shard
	settle := s.opts.SettleMax.Milliseconds()
	var list []*session
	sh.deadlines.Ascend(func(d due) bool {
		switch {
		case d.at > now, len(list) == sweepBatch:
			return false
		case watermark > d.at && from > d.at, now > d.at+settle:
			list = append(list, sh.sessions[d.id])
		default:
			held++
		}
		return true
	})
	for _, x := range list {
		s.retire(tx, x, sessionv1.Session_EXPIRED, "", moment{now: now, at: now})
	}
	return len(list), held
}

func (s *Store) purge(tx *txn, now int64) int {
	sh := tx.shard
	var list []*session
	sh.retired.Ascend(func(d due) bool {
		if d.at > now || len(list) == sweepBatch {
			return false
		}
		list = append(list, sh.sessions[d.id])
		return true
	})
	for _, x := range list {
		sh.remove(x)
		tx.remove(x.view.GetId())
	}
	sh.unbury(now)
	return len(list)
}
