package redis

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// reapply applies endings again that Redis has lost, so that every replica, and the
// lists, agree with what this one saw.
type reapply struct {
	// from is since when endings are to be applied, in Unix milliseconds; 0 for none.
	from   atomic.Int64
	signal chan struct{}

	mu sync.Mutex
	// gaps are the sessions that have lost events, and after which times.
	gaps map[sessionGap]bool
}

// sessionGap is a place where a session has lost events.
type sessionGap struct {
	id   string
	from int64
}

const reapplyPause = 200 * time.Millisecond

// liveUntil returns the deadline of the session in the reply of end.lua, 0 where it is
// over.
func liveUntil(r reply) int64 {
	vals, _ := r[1].([]any)
	fields := reply(vals)
	if len(fields) != len(sessionFields) || fields.text(fieldState) != "0" {
		return 0
	}
	return fields.num(fieldExpire)
}

// reapplyEndings asks for the endings since a time to be applied again.
func (s *Store) reapplyEndings(from int64) {
	from = max(1, from)
	// An earlier loss may not have been taken up yet.
	for old := s.again.from.Load(); old == 0 || from < old; old = s.again.from.Load() {
		if s.again.from.CompareAndSwap(old, from) {
			break
		}
	}
	select {
	case s.again.signal <- struct{}{}:
	default:
	}
}

// markGaps makes readers of the shards that have lost data read on from where it was
// lost, and asks for the sessions that are known to have lost events to be marked.
func (s *Store) markGaps(l loss) {
	shard := -1
	if s.conn.cluster {
		shard = l.tl.sh.n
	}
	s.tail.rewind(shard, l.before())
	if l.all {
		return
	}
	s.again.mu.Lock()
	defer s.again.mu.Unlock()
	if s.again.gaps == nil {
		s.again.gaps = map[sessionGap]bool{}
	}
	for id := range s.tail.recent.between(shard, l.gap) {
		s.again.gaps[sessionGap{id, l.from}] = true
	}
}

// applyGaps marks sessions that have lost events, for readers that had not come as far
// as those.
func (s *Store) applyGaps(ctx context.Context) error {
	s.again.mu.Lock()
	gaps := s.again.gaps
	s.again.gaps = nil
	s.again.mu.Unlock()
	var calls []invocation
	for g := range gaps {
		if sh := s.shardOf(g.id); sh != nil {
			calls = append(calls, s.scripts.gap.on(sh, g.id, g.from))
		}
	}
	_, errs := s.runEach(ctx, "gap", calls)
	err := errors.Join(errs...)
	if !errors.Is(err, storage.ErrUnavailable) {
		return nil
	}
	s.again.mu.Lock()
	defer s.again.mu.Unlock()
	maps.Copy(gaps, s.again.gaps) // of a later loss, which has come meanwhile
	s.again.gaps = gaps
	return err
}

// runReapply applies endings whenever it is asked for, until the store is closed.
func (s *Store) runReapply() {
	ctx, cancel := s.untilClosed()
	defer cancel()
	for ctx.Err() == nil {
		select {
		case <-s.again.signal:
		case <-ctx.Done():
			return
		}
		for from := s.again.from.Swap(0); from > 0 && ctx.Err() == nil; {
			n, err := s.applyEndings(ctx, from)
			if n > 0 {
				s.opts.Log.InfoContext(ctx, "ended sessions again that the restored data had as live", slog.Int("sessions", n))
			}
			if err = errors.Join(err, s.applyGaps(ctx)); err == nil {
				from = s.again.from.Swap(0)
				continue
			}
			_ = s.pause(ctx, reapplyPause)
			if later := s.again.from.Swap(0); later > 0 { // a loss that has come meanwhile
				from = min(from, later)
			}
		}
	}
}

// applyEndings ends and deletes what this process saw ended and deleted since a time.
// It returns how many sessions it has ended.
func (s *Store) applyEndings(ctx context.Context, from int64) (ended int, err error) {
	var calls []invocation
	var ids []string
	var failed error
	all := s.endings.since(from)
	for id, x := range all {
		sh := s.shardOf(id)
		if sh == nil {
			continue
		}
		if x.kind == endingDeleted {
			if err := s.remove(ctx, sh, id, asOf{ms: x.at}); err != nil {
				failed = err
			}
			continue
		}
		calls, ids = append(calls, s.ending(sh, id, x.reason, asOf{ms: x.at}, "1")), append(ids, id)
	}
	replies, errs := s.runEach(ctx, "end", calls)
	var second []invocation
	for i, r := range replies {
		switch {
		case errs[i] != nil:
			failed = errs[i]
		case r.num(0) == 1:
			ended++
		case r.num(0) == 0:
			// The restored record may have a deadline from before the end.
			if exp := liveUntil(r); exp > 0 {
				second = append(second, s.ending(s.shardOf(ids[i]), ids[i], all[ids[i]].reason, asOf{ms: exp - 1}, ""))
			}
		}
	}
	replies, errs = s.runEach(ctx, "end", second)
	for i, r := range replies {
		switch {
		case errs[i] != nil:
			failed = errs[i]
		case r.num(0) == 1:
			ended++
		}
	}
	if errors.Is(failed, storage.ErrUnavailable) {
		return ended, failed
	}
	return ended, nil // what is refused for good is refused again
}
