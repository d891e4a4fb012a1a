package redis

import (
	"context"
	"time"

	goredis "github.com/redis/go-redis/v9"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
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
	for _, sh := range s.shards {
		for from := 0; ; from += censusPage {
			if err := s.usable(ctx); err != nil {
				return out, err
			}
			begin := s.clock.elapsed()
			n, err := s.countPage(ctx, sh, from, &out)
			if err != nil {
				return out, err
			}
			if n < censusPage {
				break
			}
			if err := s.pause(ctx, censusShare*(s.clock.elapsed()-begin)); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// countPage counts the sessions of a page of the deadlines, and returns how many
// entries it has.
func (s *Store) countPage(ctx context.Context, sh *shard, from int, out *storage.Census) (int, error) {
	page := goredis.NewStringSliceCmd(ctx, "zrange", sh.deadlines(), from, from+censusPage-1)
	if err := failure(s.conn.read.do(ctx, page)); err != nil {
		return 0, err
	}
	records := make([]*goredis.StringSliceCmd, len(page.Val()))
	for i, id := range page.Val() {
		records[i] = goredis.NewStringSliceCmd(ctx, "hmget", sh.session(id), "st", "exp", "act", "below", "window", "ext", "max", "cap")
	}
	if err := s.conn.read.pipeline(ctx, asCmders(records)...); err != nil {
		return 0, err
	}
	now := s.now()
	for _, cmd := range records {
		if err := failure(cmd.Err()); err != nil {
			return 0, err
		}
		v := cmd.Val()
		if v[0] != "0" {
			continue // over or gone since the page was read
		}
		terms := lifetime.Terms{ExtendBelow: number(v[3]), ActiveWindow: number(v[4]), Max: int32(number(v[6])), Cap: number(v[7])}
		state := lifetime.State{Expire: number(v[1]), LastActivity: number(v[2]), Count: int32(number(v[5]))}
		out.ByPhase[lifetime.Phase(terms, state, now)]++
		if state.Capped(terms) {
			out.AtCap++
		}
	}
	return len(records), nil
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
