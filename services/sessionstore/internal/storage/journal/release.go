package journal

import (
	"context"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// clockMargin is how far this machine's clock and that of the store underneath
// may be apart without harm.
const clockMargin = 5 * time.Second

// postponeMost is how long a replica leaves sweeping to others at a time, for what
// it has yet to replay: the part of the store that it belongs to may be down.
const postponeMost = time.Minute

// Sweep expires sessions, but for those that have, or may have, activity waiting
// here.
func (s *Store) Sweep(ctx context.Context) (storage.SweepResult, error) {
	err := s.publishHold(ctx)
	if err != nil && !s.held.Load() {
		return storage.SweepResult{}, err
	}
	if err != nil {
		s.postponed.Store(0) // what waits cannot be replayed now
	} else if s.postponeSweep() {
		return storage.SweepResult{}, nil
	}
	return s.Store.Sweep(ctx)
}

// postponeSweep says whether a sweep would expire a session although writes of it were
// acknowledged: settle_max has passed since the deadline that the store underneath
// knows, or is told by its creation, and no hold goes further.
func (s *Store) postponeSweep() bool {
	now := s.now()
	if !s.waiting.overdue(s.settled(now)) {
		s.postponed.Store(0)
		return false
	}
	s.postponed.CompareAndSwap(0, now.UnixMilli())
	return now.UnixMilli()-s.postponed.Load() < postponeMost.Milliseconds()
}

// settled returns the deadline before which sessions may have been expired by any
// replica, whatever is held.
func (s *Store) settled(now time.Time) time.Time { return now.Add(s.margin() - s.opts.SettleMax) }

// margin is clockMargin, or less where settle_max is short.
func (s *Store) margin() time.Duration { return min(clockMargin, s.opts.SettleMax/10) }

// publishHold asks the store underneath, and by it every replica, to leave alone
// what is due from the earliest time on that a pending write speaks of, or from now.
// If it fails, the previous, stricter hold stays in force.
func (s *Store) publishHold(ctx context.Context) error {
	s.accepting.Lock() // every write that has its time is known below
	now := s.now()
	from, waits := s.waiting.earliest()
	if !waits {
		from = now
	}
	// One too far back would count for nothing.
	if least := now.Add(s.margin() - storage.HoldLife(s.opts.SettleMax)); from.Before(least) {
		from = least
	}
	// Record this before the call, which may take effect even if it returns an error;
	// and before another write is accepted, which must be judged by it.
	s.said.Store(max(s.said.Load(), from.UnixMilli()))
	s.accepting.Unlock()
	err := s.Hold(ctx, s.holder, from)
	if err == nil {
		s.held.Store(true)
	}
	return err
}
