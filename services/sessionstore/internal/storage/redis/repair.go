package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// scanPage is how many keys a server looks at for one page of a repair.
	scanPage = 500
	// repairRetries is how often a full repair comes back to sessions whose slot
	// was moving, and repairPause the wait before it does, in multiples of
	// the timeout.
	repairRetries = 20
	repairPause   = 4
	// repairPasses is how often a full repair looks at everything at most, while
	// slots move.
	repairPasses = 5
	// skippedMost bounds how many of them are remembered.
	skippedMost = 100_000
)

// scan is where the repairs with a budget have come to: a place in the keys of
// each server.
type scan struct {
	mu sync.Mutex
	at map[string]uint64
}

// Repair makes the indexes agree with the records of the sessions.
func (s *Store) Repair(ctx context.Context, q storage.RepairQuery) (storage.RepairResult, error) {
	r := repair{s: s, q: q}
	if err := s.usable(ctx); err != nil {
		return r.sum, err
	}
	if q.Budget > 0 {
		err := r.continueScan(ctx)
		return r.sum, err
	}
	if err := r.scanAll(ctx); err != nil {
		return r.sum, err
	}
	if err := r.dropAllOrphans(ctx); err != nil {
		return r.sum, err
	}
	if r.malformed > 0 {
		return r.sum, fmt.Errorf("%d records are malformed and could not be compared", r.malformed)
	}
	raised, err := s.run(ctx, s.scripts.raiseFormat.on(s.shards[0], "", format))
	if err != nil {
		return r.sum, err
	}
	found := raised.text(1)
	s.dataFormat.Store(&found)
	r.sum.Done = true
	return r.sum, nil
}

// servers returns a client for the server, or for each master of a cluster in the
// order of their addresses.
func (l *lane) servers(ctx context.Context) ([]*goredis.Client, error) {
	if single, ok := l.client.(*goredis.Client); ok {
		return []*goredis.Client{single}, nil
	}
	var mu sync.Mutex
	var out []*goredis.Client
	cluster, ok := l.client.(*goredis.ClusterClient)
	if !ok {
		return nil, fmt.Errorf("unexpected client %T", l.client)
	}
	err := cluster.ForEachMaster(ctx, func(_ context.Context, node *goredis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		out = append(out, node)
		return nil
	})
	slices.SortFunc(out, func(a, b *goredis.Client) int { return strings.Compare(a.Options().Addr, b.Options().Addr) })
	return out, err
}

// layout describes which slots each master of a cluster has, and whether one is
// moving. It changes whenever a slot has moved, and where it came back: each claim to
// a slot has an epoch of its own. A single server has none.
func (s *Store) layout(ctx context.Context, servers []*goredis.Client) (text string, moving bool, err error) {
	if !s.conn.cluster {
		return "", false, nil
	}
	for _, node := range servers {
		nodes, err := node.ClusterNodes(ctx).Result()
		if err != nil {
			return "", false, failure(err)
		}
		if f := ownLine(nodes); f != nil {
			text += strings.Join(append([]string{f[0], f[2], f[6]}, f[8:]...), " ") + "\n"
			moving = moving || strings.Contains(text, "[")
		}
	}
	return text, moving, nil
}

// repair is one call of Repair.
type repair struct {
	s       *Store
	q       storage.RepairQuery
	sum     storage.RepairResult
	skipped []string // ids of sessions whose slot was moving
	// malformed are records that no script of ours has written.
	malformed int
}

// scanAll looks at every session. Keys that move from one server to another while
// they are scanned may be missed, so it begins again until nothing has moved.
func (r *repair) scanAll(ctx context.Context) error {
	for range repairPasses {
		servers, err := r.s.conn.read.servers(ctx)
		if err != nil {
			return failure(err)
		}
		r.sum.Keys, r.sum.Total = 0, 0
		for _, node := range servers {
			n, err := node.DBSize(ctx).Result()
			if err != nil {
				return failure(err)
			}
			r.sum.Total += n
		}
		before, moving, err := r.s.layout(ctx, servers)
		if err != nil {
			return err
		}
		for _, node := range servers {
			if _, err := r.scanServer(ctx, node, 0); err != nil {
				return err
			}
		}
		if err := r.retrySkipped(ctx); err != nil {
			return err
		}
		after, _, err := r.s.layout(ctx, servers)
		if err != nil {
			return err
		}
		if before == after && !moving {
			return nil
		}
		if err := r.s.pause(ctx, repairPause*r.s.opts.Timeout); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: %w: slots have moved in each of %d passes; repair again when they have arrived", storage.ErrUnavailable, storage.ErrPartly, repairPasses)
}

// continueScan looks at so many keys as the budget says, from where the call
// before has ended, and shares them out among the servers.
func (r *repair) continueScan(ctx context.Context) error {
	servers, err := r.s.conn.read.servers(ctx)
	if err != nil {
		return failure(err)
	}
	at := &r.s.scan
	at.mu.Lock()
	defer at.mu.Unlock()
	next := map[string]uint64{} // without servers that have left
	var failed error
	for _, node := range servers {
		addr := node.Options().Addr
		cursor, err := r.scanServer(ctx, node, at.at[addr])
		next[addr] = cursor
		failed = errors.Join(failed, err)
	}
	at.at = next
	return failed
}

// scanServer looks at the sessions of one server, from a place in its keys on, to
// their end or that of the budget. It returns where it has come to, 0 for the end.
func (r *repair) scanServer(ctx context.Context, node *goredis.Client, cursor uint64) (uint64, error) {
	for looked := 0; ; {
		if err := r.s.usable(ctx); err != nil {
			return cursor, err
		}
		begin := r.s.clock.elapsed()
		keys, next, err := node.Scan(ctx, cursor, sessionKeys, scanPage).Result()
		if err != nil {
			return cursor, failure(err)
		}
		ids := make([]string, len(keys))
		for i, k := range keys {
			ids[i] = k[strings.LastIndexByte(k, ':')+1:]
		}
		if err := r.reindex(ctx, ids); err != nil {
			return cursor, err
		}
		cursor, looked = next, looked+scanPage
		if r.sum.Keys += scanPage; r.sum.Total > 0 {
			r.sum.Keys = min(r.sum.Keys, r.sum.Total) // a page may have fewer
		}
		r.report()
		if cursor == 0 || r.q.Budget > 0 && looked >= r.q.Budget {
			return cursor, nil
		}
		if r.q.Budget > 0 {
			if err := r.s.pause(ctx, censusShare*(r.s.clock.elapsed()-begin)); err != nil {
				return cursor, err
			}
		}
	}
}

func (r *repair) report() {
	if r.q.Report != nil {
		r.q.Report(r.sum)
	}
}

// reindex makes the indexes agree with the records of some sessions, and remembers
// those whose slot is moving.
func (r *repair) reindex(ctx context.Context, ids []string) error {
	requests := make([]*goredis.StringCmd, 0, len(ids))
	shards := make([]*shard, 0, len(ids))
	ids = slices.DeleteFunc(ids, func(id string) bool { return r.s.shardOf(id) == nil }) // not a session of ours
	for _, id := range ids {
		sh := r.s.shardOf(id)
		shards = append(shards, sh)
		requests = append(requests, goredis.NewStringCmd(ctx, "hget", sh.session(id), "req"))
	}
	if err := r.s.conn.read.pipeline(ctx, asCmders(requests)...); err != nil {
		return err
	}
	sc := r.s.scripts.reindex
	calls := make([]invocation, len(ids))
	for i, id := range ids {
		calls[i] = sc.declare(shards[i], id, sc.required, 1)
		if request := requests[i].Val(); request != "" {
			calls[i] = calls[i].and(shards[i].key(keyRequest, request))
		}
		calls[i] = calls[i].with(id)
	}
	replies, errs := r.s.runEach(ctx, "reindex", calls)
	for i, id := range ids {
		switch err := errs[i]; {
		case err == nil && requests[i].Err() != nil && !errors.Is(requests[i].Err(), goredis.Nil) && len(r.skipped) < skippedMost:
			r.skip(id) // whether it has a request key is not known
		case errors.Is(err, storage.ErrUnavailable) && len(r.skipped) < skippedMost:
			r.skip(id)
		case errors.Is(err, storage.ErrUnavailable), errors.Is(err, storage.ErrClosed), ctx.Err() != nil:
			return err
		case err != nil:
			r.malformed++
			r.s.opts.Log.WarnContext(ctx, "session cannot be compared with its index entries", slog.Int("shard", shards[i].n), slog.Any("error", err))
		case replies[i].num(0) == none:
			// Gone since it was found.
		default:
			r.sum.Sessions++
			r.sum.Restored += replies[i].num(0)
		}
	}
	return nil
}

// skip leaves a session for later.
func (r *repair) skip(id string) {
	r.skipped = append(r.skipped, id)
	r.sum.Skipped = int64(len(r.skipped))
}

// retrySkipped comes back to sessions whose slot was moving, until it has
// arrived.
func (r *repair) retrySkipped(ctx context.Context) error {
	for range repairRetries {
		if len(r.skipped) == 0 {
			return nil
		}
		if err := r.s.pause(ctx, repairPause*r.s.opts.Timeout); err != nil {
			return err
		}
		again := r.skipped
		r.skipped, r.sum.Skipped = nil, 0
		for some := range slices.Chunk(again, scanPage) {
			if err := r.reindex(ctx, slices.Clone(some)); err != nil {
				return err
			}
		}
		r.report()
	}
	if n := len(r.skipped); n > 0 {
		return fmt.Errorf("%w: %w: %d sessions cannot be looked at while their slots move", storage.ErrUnavailable, storage.ErrPartly, n)
	}
	return nil
}

func (r *repair) dropAllOrphans(ctx context.Context) error {
	for _, sh := range r.s.shards {
		n, err := r.s.dropOrphans(ctx, sh)
		r.sum.Dropped += int64(n)
		if err != nil {
			return err
		}
		r.report()
	}
	return nil
}
