package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// sweepBatch is how many sessions of a shard are warned, expired and purged
	// at most between two looks at it, and sweepShards how many shards are looked
	// at in one round trip. Round trips of batches are bounded (batchMost), so
	// that other callers wait for a few milliseconds at most.
	sweepBatch  = 256
	sweepShards = 16
	// keepFeed is how long after settle_max an entry is dropped even though a
	// group has not acknowledged it, in milliseconds.
	keepFeed = 3600_000
	// keepUngrouped is how many entries a shard keeps while no group reads it.
	keepUngrouped = 1000
)

// Sweep does what is due on every shard: it finds the sessions that may be due by
// the shard's indexes, and judges each by its own record, in a script of its own.
// Shards with more to do than a batch are swept again, after the others.
func (s *Store) Sweep(ctx context.Context) (storage.SweepResult, error) {
	if err := s.usable(ctx); err != nil {
		return storage.SweepResult{}, err
	}
	sw := sweep{s: s, held: map[*shard]int{}, orphaned: map[*shard]bool{}, failures: []error{s.past.look(ctx)}}
	// In a cluster, the node that was asked may be the only one that does not
	// answer.
	if sw.failures[0] != nil && !s.conn.cluster {
		return sw.sum, sw.failures[0]
	}
	for left := slices.Clone(s.shards); len(left) > 0; {
		some := left[:min(sweepShards, len(left))]
		left = append(left[len(some):], sw.sweepShards(ctx, some)...)
	}
	for sh := range sw.orphaned {
		_, err := s.dropOrphans(ctx, sh)
		sw.fail(err)
	}
	for _, n := range sw.held {
		sw.sum.Held += n
	}
	s.warnOfHold(ctx, sw.oldestHold)
	return sw.sum, partly(errors.Join(sw.failures...), sw.swept)
}

// sweep is one sweep of all shards.
type sweep struct {
	s        *Store
	sum      storage.SweepResult
	swept    int
	held     map[*shard]int
	orphaned map[*shard]bool
	failures []error
	// oldestHold is the earliest hold that was seen, in Unix milliseconds, 0 for none.
	oldestHold int64
}

// warnOfHold raises a warning while a hold of long ago delays every expiry: its
// holder is cut off from Redis, or gone without having given it up.
func (s *Store) warnOfHold(ctx context.Context, from int64) {
	const code = "expiry-held"
	if at := time.UnixMilli(from); from > 0 && s.Now().Sub(at) > s.opts.SettleMax {
		s.warnings.Raise(ctx, code, "", fmt.Sprintf(
			"a replica with a journal has not reported since %s: until it does, and for %s at most, sessions expire %s after their deadline; start it with its data directory",
			at.UTC().Format(time.RFC3339), storage.HoldLife(s.opts.SettleMax), s.opts.SettleMax))
		return
	}
	s.warnings.Clear(ctx, code, "")
}

// failuresMost bounds the failures of a sweep that are reported: they are mostly
// the same for each shard.
const failuresMost = 3

func (sw *sweep) fail(err error) {
	if err != nil && len(sw.failures) <= failuresMost {
		sw.failures = append(sw.failures, err)
	}
}

// Places in the reply of sweep.lua.
const (
	swNow = iota
	swUpto
	swWarnBefore
	swHeld
	swTrimmed
	swWarn
	swExpire
	swPurge
	swHold
)

// sweepKinds are what a sweep does to sessions, in this order.
var sweepKinds = []int{swWarn, swExpire, swPurge}

// task is what a sweep does to one session.
type task struct {
	sh   *shard
	id   string
	kind int // swWarn, swExpire or swPurge
	call invocation
}

// sweepShards looks at some shards and does what is due there. It returns those
// with more to do.
func (sw *sweep) sweepShards(ctx context.Context, some []*shard) (more []*shard) {
	s := sw.s
	looks := make([]invocation, len(some))
	for i, sh := range some {
		looks[i] = s.scripts.sweep.on(sh, "", sweepBatch, s.opts.SettleMax.Milliseconds(),
			s.opts.SettleMax.Milliseconds()+keepFeed, keepUngrouped, storage.ActivityGroup, storage.HoldLife(s.opts.SettleMax).Milliseconds())
	}
	replies, errs := s.runAll(ctx, "sweep", looks)
	tasks := map[int][]task{}
	full := map[*shard]bool{}
	for i, r := range replies {
		if errs[i] != nil {
			sw.fail(errs[i])
			continue
		}
		sw.swept++
		sw.sum.Trimmed += int(r.num(swTrimmed))
		sw.held[some[i]] = int(r.num(swHeld))
		if from := r.num(swHold); from > 0 && (sw.oldestHold == 0 || from < sw.oldestHold) {
			sw.oldestHold = from
		}
		for _, kind := range sweepKinds {
			ids, _ := r[kind].([]any)
			full[some[i]] = full[some[i]] || len(ids) >= sweepBatch
			for _, v := range ids {
				id, _ := v.(string)
				tasks[kind] = append(tasks[kind], s.task(some[i], id, kind, r))
			}
		}
	}
	// One kind after the other, so that a shard's feed has warnings before what
	// expires, also where the server has to be taught a script first.
	for _, kind := range sweepKinds {
		for sh := range sw.work(ctx, tasks[kind]) {
			full[sh] = false // it comes again with the next sweep, not at once
		}
	}
	for _, sh := range some {
		if full[sh] {
			more = append(more, sh)
		}
	}
	return more
}

func (s *Store) task(sh *shard, id string, kind int, look reply) task {
	t := task{sh: sh, id: id, kind: kind}
	switch kind {
	case swWarn:
		t.call = s.scripts.warn.on(sh, id, id, look.num(swWarnBefore))
	case swExpire:
		t.call = s.scripts.expire.on(sh, id, id, look.num(swUpto))
	default:
		t.call = s.scripts.purge.on(sh, id, id)
	}
	return t
}

// work runs the tasks, and those again whose scripts need one key more. It
// returns the shards on which some failed.
func (sw *sweep) work(ctx context.Context, tasks []task) (failed map[*shard]bool) {
	failed = map[*shard]bool{}
	for range undeclaredMost {
		if len(tasks) == 0 {
			break
		}
		calls := make([]invocation, len(tasks))
		for i, t := range tasks {
			calls[i] = t.call
		}
		replies, errs := sw.s.runEach(ctx, "sweep", calls)
		var rest []task
		for i, t := range tasks {
			switch {
			case errs[i] != nil:
				sw.fail(errs[i])
				failed[t.sh] = true
			case replies[i].num(0) == uncertain:
				sw.fail(errHalfMoved)
				failed[t.sh] = true
			case replies[i].num(0) == again:
				sc := sw.s.scripts.purge
				t.call = sc.declare(t.sh, t.id, sc.required, 1).and(t.sh.key(keyRequest, replies[i].text(1))).with(t.id)
				rest = append(rest, t)
			default:
				sw.count(t, replies[i].num(0))
			}
		}
		tasks = rest
	}
	return failed
}

func (sw *sweep) count(t task, verdict int64) {
	switch {
	case verdict == none:
		sw.orphaned[t.sh] = true
	case verdict != 1:
	case t.kind == swWarn:
		sw.sum.Warned++
	case t.kind == swExpire:
		sw.sum.Expired++
	default:
		sw.sum.Purged++
	}
}
