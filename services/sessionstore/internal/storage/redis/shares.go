package redis

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// keep renews the leases and shares the shards out again, until the reader is
// closed.
func (r *reader) keep() {
	tick := time.NewTicker(r.s.opts.LeaseTTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		case <-r.s.closed:
			r.shut()
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, r.s.opts.LeaseTTL/3)
		err := r.share(ctx, false)
		cancel()
		if err != nil && r.ctx.Err() == nil {
			r.s.opts.Log.Warn("feed leases could not be renewed", slog.String("group", r.group), slog.Any("error", err))
		}
		r.dirtyAll() // a wake-up that was missed must not be a hang
	}
}

// share renews what this reader holds, gives up what is more than its fair
// part, and takes what is free up to it. At the opening it also takes over
// from an earlier reader of the same consumer.
func (r *reader) share(ctx context.Context, opening bool) error {
	members, err := r.heartbeat(ctx)
	if err != nil {
		return err
	}
	quota := (len(r.s.shards) + members - 1) / members
	r.mu.Lock()
	mine := slices.Clone(r.shards)
	r.mu.Unlock()

	keep, surplus := mine, []int(nil)
	if len(mine) > quota {
		keep, surplus = mine[:quota], mine[quota:]
	}
	held, _, err := r.lease(ctx, "renew", keep)
	if err != nil {
		return err
	}
	if _, _, err := r.lease(ctx, "release", surplus); err != nil {
		return err
	}
	started := map[int]storage.Cursor{}
	if want := quota - len(held); want > 0 {
		var rest []int
		for n := range r.s.shards {
			if !slices.Contains(held, n) && !slices.Contains(surplus, n) {
				rest = append(rest, n)
			}
		}
		// Several readers look for free shards at once: each begins elsewhere.
		if len(rest) > 0 {
			at := int(r.nonce[0]) * len(rest) / 128 % len(rest)
			rest = append(rest[at:], rest[:at]...)
		}
		for len(rest) > 0 && want > 0 {
			some := rest[:min(want, len(rest))]
			rest = rest[len(some):]
			got, acked, err := r.lease(ctx, "acquire", some)
			if err != nil {
				return err
			}
			for i, n := range got {
				started[n] = acked[i]
			}
			held = append(held, got...)
			want -= len(got)
		}
	}
	slices.Sort(held)
	r.assign(held, started, opening)
	return nil
}

// heartbeat says that this consumer lives, and counts those who do.
func (r *reader) heartbeat(ctx context.Context) (int, error) {
	call := r.s.scripts.beat.on(r.s.shards[0], r.group, r.consumer, r.s.opts.LeaseTTL.Milliseconds())
	reply, err := r.s.run(ctx, call)
	if err != nil {
		return 0, err
	}
	return int(reply.num(0)), nil
}

// lease asks for shards and returns those that are held, with the group's cursor
// on each. Lease and cursor are two scripts of one key each, which work while a
// slot moves; an older cursor than that at the time of the lease means that some
// entries are delivered again. Of a shard that cannot be reached, the lease stays
// as it was: not acquired, or held until it runs out.
func (r *reader) lease(ctx context.Context, action string, shards []int) ([]int, []storage.Cursor, error) {
	if len(shards) == 0 {
		return nil, nil, nil
	}
	calls := make([]invocation, 0, 2*len(shards))
	for _, n := range shards {
		calls = append(calls, r.s.scripts.lease.on(r.s.shards[n], r.group, action, r.consumer, r.nonce, r.s.opts.LeaseTTL.Milliseconds()))
	}
	if action != "release" {
		for _, n := range shards {
			calls = append(calls, r.s.scripts.join.on(r.s.shards[n], "", r.group))
		}
	}
	replies, errs := r.s.runAll(ctx, "lease", calls)
	if err := onlyAll(errs); err != nil {
		return nil, nil, err
	}
	var held []int
	var acked []storage.Cursor
	for i, n := range shards {
		if errs[i] != nil {
			if action == "renew" {
				held, acked = append(held, n), append(acked, storage.Cursor{})
			}
			continue
		}
		switch replies[i].num(0) {
		case 1:
			var at storage.Cursor
			if action == "acquire" {
				if errs[len(shards)+i] != nil {
					continue // the cursor is not known; the next round has the lease still
				}
				var err error
				if at, err = storage.ParseCursor("acked", replies[len(shards)+i].text(1)); err != nil {
					return nil, nil, err
				}
			}
			held, acked = append(held, n), append(acked, at)
		case none:
			// The same consumer reads elsewhere now.
			r.shut()
			return nil, nil, storage.ErrClosed
		}
	}
	return held, acked, nil
}
