package redis

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

const (
	// clockEvery is the time between two measurements of the clock of Redis.
	clockEvery = time.Second
	// clockTolerance is the difference of two clocks that is a warning.
	clockTolerance = time.Second
	// jumpShown is how long a jump of the clock of Redis stays a warning.
	jumpShown = 10 * time.Minute
	// warnClock is the code of warnings about clocks.
	warnClock = "clock"
)

// Now returns the time by which Redis judges deadlines, as well as it is known here.
func (s *Store) Now() time.Time { return s.clock.now() }

func (s *Store) now() int64 { return s.clock.now().UnixMilli() }

// measureClock asks the server of shard 0, which also keeps the deployment's record,
// for its time, and corrects the clock.
func (s *Store) measureClock(ctx context.Context) error {
	if s.opts.ownClock {
		return nil
	}
	node, err := s.clockServer(ctx)
	if err != nil {
		return failure(routeError{err})
	}
	m, err := s.askTime(ctx, node)
	if err != nil {
		return failure(err)
	}
	jump := s.clock.correct(m)
	s.clockReport.jumped(jump, s.clock.now())
	if jump != 0 {
		s.opts.Log.ErrorContext(ctx, "the clock of Redis has jumped, or this process was suspended; deadlines are judged by that clock", slog.Duration("by", jump))
	}
	s.reportClock(ctx)
	return nil
}

// clockServer returns the server by which the clock is set.
func (s *Store) clockServer(ctx context.Context) (*goredis.Client, error) {
	switch client := s.conn.read.client.(type) {
	case *goredis.Client:
		return client, nil
	case *goredis.ClusterClient:
		return client.MasterForKey(ctx, s.shards[0].feed())
	default:
		return nil, fmt.Errorf("unexpected client %T", client)
	}
}

// askTime measures the clock of a server. It is no caller's call: it passes by the
// breakers, so it neither opens nor closes one, and goes on while one is open.
func (s *Store) askTime(ctx context.Context, node *goredis.Client) (measurement, error) {
	ctx, cancel := context.WithTimeout(pastBreakers(ctx), s.opts.Timeout)
	defer cancel()
	m := measurement{sent: s.clock.elapsed()}
	at, err := node.Time(ctx).Result()
	m.received, m.at = s.clock.elapsed(), at
	return m, err
}

// followClock measures the clock of Redis until the store is closed. The first
// measurement is a part of the check of what is in Redis: no call comes before it.
func (s *Store) followClock() {
	ctx, cancel := s.untilClosed()
	defer cancel()
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c := s.checked.Load(); c == nil || c.err != nil {
			continue
		}
		err := s.measureClock(ctx)
		if err == nil {
			failures = 0
			s.compareServers(ctx)
			continue
		}
		if failures++; failures&(failures-1) == 0 && ctx.Err() == nil {
			s.opts.Log.DebugContext(ctx, "the clock of Redis cannot be read", slog.Int("inARow", failures), slog.Any("error", err))
		}
	}
}

// compareServers warns of masters of a cluster whose clocks differ from the one that
// the clock is set by: each judges the deadlines of its own sessions.
func (s *Store) compareServers(ctx context.Context) {
	if !s.conn.cluster || s.opts.ownClock {
		return
	}
	servers, err := s.conn.read.servers(ctx)
	if err != nil {
		return
	}
	seen := map[string]bool{"": true} // the process's own clock is no matter of this
	for _, node := range servers {
		addr := node.Options().Addr
		m, err := s.askTime(ctx, node)
		if err != nil {
			seen[addr] = true // nothing new is known of it
			continue
		}
		apart := s.clock.apart(m)
		if apart.Abs() < clockTolerance {
			continue
		}
		seen[addr] = true
		s.warnings.Raise(ctx, warnClock, addr, fmt.Sprintf("the clock of this server is %s that of the cluster's first shard; sessions are judged by the clock of their server; synchronize the servers' clocks", aheadOf(s.clockReport.steady(addr, apart))))
	}
	s.warnings.ClearOthers(ctx, warnClock, seen)
}

// reportClock raises or clears the warning about the process's own clock.
func (s *Store) reportClock(ctx context.Context) {
	var parts []string
	if d, ok := s.clock.difference(); ok && d.Abs() > clockTolerance {
		parts = append(parts, fmt.Sprintf("the clock of this process is %s that of Redis: deadlines and times of sessions follow Redis, logs and traces do not; synchronize both clocks", aheadOf(s.clockReport.steady("", d))))
	}
	if by, at := s.clockReport.jump(s.clock.now()); by != 0 {
		parts = append(parts, fmt.Sprintf("at %s the clock of Redis jumped, or this process was suspended; it is %s where it was, and sessions from before expire by that much %s", at.UTC().Format(time.RFC3339), aheadOf(by), early(by)))
	}
	if len(parts) == 0 {
		s.warnings.Clear(ctx, warnClock, "")
		return
	}
	s.warnings.Raise(ctx, warnClock, "", strings.Join(parts, "; "))
}

// aheadOf spells a difference, such as "1h0m0s ahead of".
func aheadOf(d time.Duration) string {
	word := "ahead of"
	if d < 0 {
		word = "behind"
	}
	return d.Abs().Round(100*time.Millisecond).String() + " " + word
}

// early spells which way a jump of the clock moves the end of sessions.
func early(jump time.Duration) string {
	if jump > 0 {
		return "earlier"
	}
	return "later"
}

// clockReport is what was reported of clocks. The zero value is ready for use.
type clockReport struct {
	mu       sync.Mutex
	reported map[string]time.Duration
	by       time.Duration
	at       time.Time
}

// steady returns the difference that was reported last of a server, the process where
// empty, unless it has changed since by more than a tenth and clockTolerance: a message
// that changes is logged.
func (r *clockReport) steady(node string, d time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.reported[node]; ok && (d-old).Abs() < max(clockTolerance, old.Abs()/10) && (d < 0) == (old < 0) {
		return old
	}
	if r.reported == nil {
		r.reported = map[string]time.Duration{}
	}
	r.reported[node] = d
	return d
}

// jumped remembers a jump, where by is not 0.
func (r *clockReport) jumped(by time.Duration, at time.Time) {
	if by == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.by, r.at = by, at
}

// jump returns the last jump and when it was; 0 where there was none of late.
func (r *clockReport) jump(now time.Time) (by time.Duration, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if age := now.Sub(r.at); age.Abs() > jumpShown {
		r.by = 0
	}
	return r.by, r.at
}
