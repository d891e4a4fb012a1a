package journal

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// clockMargin is how far this machine's clock and that of the store underneath
// may be apart without harm.
const clockMargin = 5 * time.Second

// release says up to when sessions may be let go: nothing that is due after the
// earliest time that a waiting write speaks of, until it was replayed and those
// who extend sessions have seen it.
type release struct {
	mu sync.Mutex
	// from is that time; zero while none is known.
	from time.Time
	// open: a hold of this journal stands that must not be moved yet.
	open bool
	// last is when the latest write was replayed.
	last time.Time
	// held: the store underneath knows of a hold of this process.
	held atomic.Bool
}

// init starts with what a process before may have left: a hold that stands for
// writes that were replayed just before it ended. Oldest is the least time that
// a write which is still in the log speaks of.
func (r *release) init(fresh bool, now, oldest time.Time) {
	r.from, r.last, r.open = oldest, now, !fresh
}

// accepted takes note of a write that waits from now on.
func (r *release) accepted(speaksOf time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.from.IsZero() || speaksOf.Before(r.from) {
		r.from = speaksOf
	}
	r.open = true
}

// replayed takes note that a session has no writes waiting any more.
func (r *release) replayed(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = now
}

func (r *release) done() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.open
}

// Sweep lets sessions go, but for those that have, or may have, activity
// waiting here.
func (s *Store) Sweep(ctx context.Context) (storage.SweepResult, error) {
	if err := s.hold(ctx); err != nil && !s.release.held.Load() {
		return storage.SweepResult{}, err
	}
	return s.Store.Sweep(ctx)
}

// hold tells the store underneath, and by it every replica, what to leave
// alone. An earlier hold that stands in its place leaves alone more.
func (s *Store) hold(ctx context.Context) error {
	r := &s.release
	s.accepting.Lock() // every write that has its time is known below
	now, waits := s.now(), s.depth.Load() > 0
	r.mu.Lock()
	from, open, last := r.from, r.open, r.last
	r.mu.Unlock()
	s.accepting.Unlock()

	if open && !waits {
		seen, err := s.seen(ctx, now, last)
		if err != nil {
			return err
		}
		if seen {
			return s.letGo(ctx, now, last)
		}
	}
	if open && from.IsZero() {
		return nil // what a process before said still stands
	}
	if !open {
		from = now
	}
	return s.say(ctx, from)
}

// seen says whether the activity group has seen everything that was replayed.
func (s *Store) seen(ctx context.Context, now, last time.Time) (bool, error) {
	if now.Sub(last) > s.opts.SettleMax+clockMargin {
		return true, nil
	}
	groups, err := s.Store.Groups(ctx)
	if err != nil {
		return false, err
	}
	for _, g := range groups {
		if g.Group == storage.ActivityGroup && g.Watermark.Before(last.Add(clockMargin)) {
			return false, nil
		}
	}
	return true, nil
}

// letGo moves the hold on to now, unless a write was accepted meanwhile.
func (s *Store) letGo(ctx context.Context, now, last time.Time) error {
	s.accepting.Lock()
	s.release.mu.Lock()
	free := s.depth.Load() == 0 && s.release.last.Equal(last)
	if free {
		s.release.open, s.release.from = false, time.Time{}
	}
	s.release.mu.Unlock()
	s.accepting.Unlock()
	if !free {
		return nil // what was said still stands
	}
	return s.say(ctx, now)
}

// say holds from a time on. One too far back would count for nothing.
func (s *Store) say(ctx context.Context, from time.Time) error {
	margin := min(clockMargin, s.opts.SettleMax/10)
	if least := s.now().Add(margin - s.opts.SettleMax); from.Before(least) {
		from = least
	}
	err := s.Store.Hold(ctx, s.holder, from)
	if err == nil {
		s.release.held.Store(true)
	}
	return err
}
