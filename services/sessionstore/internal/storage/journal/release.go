package journal

import (
	"context"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// clockMargin is how far this machine's clock and that of the store underneath
// may be apart without harm.
const clockMargin = 5 * time.Second

// Sweep lets sessions go, but for those that have, or may have, activity
// waiting here.
func (s *Store) Sweep(ctx context.Context) (storage.SweepResult, error) {
	if err := s.hold(ctx); err != nil && !s.held.Load() {
		return storage.SweepResult{}, err
	}
	return s.Store.Sweep(ctx)
}

// hold tells the store underneath, and by it every replica, what to leave
// alone: what is due from the earliest time on that a waiting write speaks of,
// or from now. Where it cannot, a hold of before stands, which leaves alone
// more.
func (s *Store) hold(ctx context.Context) error {
	s.accepting.Lock() // every write that has its time is known below
	now := s.now()
	from, waits := s.waiting.earliest()
	s.accepting.Unlock()
	if !waits {
		from = now
	}
	// One too far back would count for nothing.
	margin := min(clockMargin, s.opts.SettleMax/10)
	if least := now.Add(margin - s.opts.SettleMax); from.Before(least) {
		from = least
	}
	// From before it is said: whatever becomes of the call, it may have been heard.
	for old := s.said.Load(); from.UnixMilli() > old && !s.said.CompareAndSwap(old, from.UnixMilli()); {
		old = s.said.Load()
	}
	err := s.Hold(ctx, s.holder, from)
	if err == nil {
		s.held.Store(true)
	}
	return err
}
