package redis

import (
	"context"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	censusPage = 500
	// censusShare is how much longer than a page of a census took the pause
	// after it is: a census takes a twentieth of one server's time at most.
	censusShare = 20
)

// Census reads through the live sessions, a page at a time with pauses.
func (s *Store) Census(ctx context.Context) (storage.Census, error) {
	out := storage.Census{ByPhase: map[sessionv1.Session_Phase]int64{}}
	phases := []sessionv1.Session_Phase{sessionv1.Session_ACTIVE, sessionv1.Session_IDLE, sessionv1.Session_EXPIRING, sessionv1.Session_EXPIRED}
	for _, sh := range s.shards {
		for from := 0; ; from += censusPage {
			if err := s.usable(ctx); err != nil {
				return out, err
			}
			begin := s.opts.Clock()
			r, err := s.run(ctx, s.scripts.census, sh, from, censusPage)
			if err != nil {
				return out, err
			}
			for i, p := range phases {
				if n := r.num(1 + i); n > 0 {
					out.ByPhase[p] += n
				}
			}
			out.AtCap += r.num(5)
			if r.num(0) < censusPage {
				break
			}
			if err := s.pause(ctx, censusShare*s.opts.Clock().Sub(begin)); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// pause waits; it returns early, with the reason, when the store is closed or
// ctx ends.
func (s *Store) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closed:
	case <-ctx.Done():
	}
	return s.usable(ctx)
}
