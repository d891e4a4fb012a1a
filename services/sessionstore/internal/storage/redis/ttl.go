package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Extend judges activities, one script each, all in one round trip.
func (s *Store) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	out := make([]storage.ExtendResult, len(items))
	var on []*shard
	var args [][]any
	var place []int
	for i, a := range items {
		sh := s.shardOf(a.SessionID)
		if sh == nil {
			out[i].Response = lifetime.Missing()
			continue
		}
		on, args, place = append(on, sh), append(args, s.extendArgs(a, present)), append(place, i)
	}
	if len(args) == 1 {
		// The usual single call rides with those of other callers.
		r, err := s.run(ctx, s.scripts.extend, on[0], args[0]...)
		out[place[0]] = s.extended(r, err)
		return out, nil
	}
	replies, errs := s.runAll(ctx, s.scripts.extend, on, args)
	for j, i := range place {
		out[i] = s.extended(replies[j], errs[j])
	}
	return out, nil
}

func (s *Store) extendArgs(a storage.Activity, as asOf) []any {
	at := any("")
	if !a.Time.IsZero() {
		at = a.Time.UnixMilli()
	}
	counts, sum := a.Stands()
	args := append(make([]any, 0, 7+2*len(counts)), a.SessionID, at, a.EventID, a.Kind, a.Traceparent, sum, as.arg())
	for kind, n := range counts {
		args = append(args, kind, n)
	}
	return args
}

// Places in the reply of extend.lua.
const (
	exOutcome = iota
	exNow
	exActivity
	exState
	exPolicy
	exCreate
	exExpire
	exCount
	exActive
	exCause
	exActiveAfter
	exExpireAfter // from here on only where it was extended
	exCountAfter
	exCauseAfter
)

func (s *Store) extended(r reply, err error) storage.ExtendResult {
	if err != nil {
		return storage.ExtendResult{Err: err}
	}
	if r.num(exOutcome) == none {
		return storage.ExtendResult{Response: lifetime.Missing()}
	}
	policy, err := s.policies.decode(r.text(exPolicy))
	if err != nil {
		return storage.ExtendResult{Err: err}
	}
	over := overPhase(r.text(exState))
	before := lifetime.State{
		Over:   over != sessionv1.Session_PHASE_UNSPECIFIED,
		Expire: r.num(exExpire), Count: int32(r.num(exCount)), LastActivity: r.num(exActive), LastCause: r.num(exCause),
	}
	after := before
	after.LastActivity = r.num(exActiveAfter)
	outcome := sessionv1.ExtendTTLResponse_Outcome(r.num(exOutcome))
	if outcome == sessionv1.ExtendTTLResponse_EXTENDED {
		after.Expire, after.Count, after.LastCause = r.num(exExpireAfter), int32(r.num(exCountAfter)), r.num(exCauseAfter)
	}
	terms := lifetime.NewTerms(r.num(exCreate), policy)
	return storage.ExtendResult{
		Response: lifetime.Response(outcome, terms, before, after, r.num(exActivity), over, policy, r.num(exNow)),
	}
}

// Explain tells what became of a session's activity.
func (s *Store) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	if err := s.usable(ctx); err != nil {
		return storage.Explanation{}, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return storage.Explanation{}, storage.ErrNotFound
	}
	ctx, end := s.span(ctx, "explain")
	cmd := goredis.NewSliceCmd(ctx, "hmget", sh.session(id), "crt", "pol", "dec", "kind", "kinds", "last")
	err := failure(s.conn.read.do(ctx, cmd))
	end(err)
	if err != nil {
		return storage.Explanation{}, err
	}
	return s.explanation(cmd.Val())
}

func (s *Store) explanation(vals []any) (storage.Explanation, error) {
	if len(vals) != 6 || vals[0] == nil {
		return storage.Explanation{}, storage.ErrNotFound
	}
	r := reply(vals)
	policy, err := s.policies.decode(r.text(1))
	if err != nil {
		return storage.Explanation{}, err
	}
	h := &lifetime.History{Kind: r.text(3), Counts: map[string]int64{}}
	for pair := range strings.SplitSeq(strings.Trim(r.text(4), ";"), ";") {
		if kind, n, ok := strings.Cut(pair, "="); ok {
			h.Counts[kind], _ = strconv.ParseInt(n, 10, 64)
		}
	}
	for line := range strings.Lines(r.text(2)) {
		d, err := parseDecision(line)
		if err != nil {
			return storage.Explanation{}, err
		}
		h.Decisions = append(h.Decisions, d)
	}
	slices.Reverse(h.Decisions) // the script keeps the newest first
	if last := r.text(5); last != "" {
		d, done, err := parseLast(last)
		if err != nil {
			return storage.Explanation{}, err
		}
		h.Decisions = append(h.Decisions, d)
		if pending := d.Activities - done; pending > 0 {
			kind := d.Kind
			if _, known := h.Counts[kind]; !known && len(h.Counts) >= lifetime.MaxKinds {
				kind = lifetime.OtherKind
			}
			h.Counts[kind] += pending
		}
	}
	return storage.Explain(h, lifetime.NewTerms(r.num(0), policy)), nil
}

// lastOrder is where in the last decision, as extend.lua writes it, the parts
// are of one of those before it; the fourth part is what the counts are done with.
var lastOrder = [11]int{7, 4, 0, 8, 9, 10, 11, 1, 2, 5, 6}

// parseLast reads the last decision, and how many of its activities need not be
// counted by kind any more.
func parseLast(line string) (lifetime.Decision, int64, error) {
	parts := strings.Split(line, " ")
	if len(parts) != len(lastOrder)+1 {
		return lifetime.Decision{}, 0, fmt.Errorf("stored last decision: %d parts", len(parts))
	}
	done, err := strconv.ParseInt(parts[3], 10, 64)
	if err != nil {
		return lifetime.Decision{}, 0, fmt.Errorf("stored last decision: %w", err)
	}
	ordered := make([]string, len(lastOrder))
	for i, at := range lastOrder {
		ordered[i] = parts[at]
	}
	d, err := decision(ordered)
	return d, done, err
}

// parseDecision reads a line as extend.lua writes it.
func parseDecision(line string) (lifetime.Decision, error) {
	return decision(strings.Split(strings.TrimSuffix(line, "\n"), " "))
}

func decision(parts []string) (lifetime.Decision, error) {
	if len(parts) != 11 {
		return lifetime.Decision{}, fmt.Errorf("stored decision: %d parts", len(parts))
	}
	var n [9]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(parts[i], 10, 64); err != nil {
			return lifetime.Decision{}, fmt.Errorf("stored decision: %w", err)
		}
	}
	return lifetime.Decision{
		At: n[0], Activity: n[1], Outcome: sessionv1.ExtendTTLResponse_Outcome(n[2]), Expire: n[3], Count: int32(n[4]),
		Cause: n[5], After: n[6], Activities: n[7], Repeats: n[8], EventID: parts[9], Kind: parts[10],
	}, nil
}

const (
	// sweepBatch is how many sessions of a shard one script expires at most, and
	// sweepShards how many shards are swept in one round trip. A server works a
	// round trip off in one go, and everybody else waits for it: some 13 ms at
	// 50 µs for a session, and for as many replicas as sweep at a time, all of
	// which must stay well below --redis-timeout, also on a slow machine.
	sweepBatch  = 16
	sweepShards = 16
	// keepFeed is how long after settle_max an entry is dropped even though a
	// group has not acknowledged it, in milliseconds.
	keepFeed = 3600_000
	// keepUngrouped is how many entries a shard keeps while no group reads it.
	keepUngrouped = 1000
)

// Sweep does what is due on every shard. Shards with more to do than one script
// may are swept again, after the others.
func (s *Store) Sweep(ctx context.Context) (storage.SweepResult, error) {
	var sum storage.SweepResult
	if err := s.usable(ctx); err != nil {
		return sum, err
	}
	all := []error{s.checkEpoch(ctx)}
	// In a cluster, the node that was asked may be the only one that is away.
	if all[0] != nil && !s.conn.cluster {
		return sum, all[0]
	}
	args := []any{
		sweepBatch, s.opts.SettleMax.Milliseconds(), s.opts.Retention.Milliseconds(), s.opts.MaxEvents,
		s.opts.SettleMax.Milliseconds() + keepFeed, keepUngrouped, storage.ActivityGroup,
	}
	held, swept := map[*shard]int{}, 0
	for left := slices.Clone(s.shards); len(left) > 0; {
		some := left[:min(sweepShards, len(left))]
		left = left[len(some):]
		lists := make([][]any, len(some))
		for i := range lists {
			lists[i] = args
		}
		replies, errs := s.runAll(ctx, s.scripts.sweep, some, lists)
		for i, r := range replies {
			if errs[i] != nil {
				all = append(all, errs[i])
				continue
			}
			swept++
			sum.Warned += int(r.num(0))
			sum.Expired += int(r.num(1))
			sum.Purged += int(r.num(2))
			sum.Trimmed += int(r.num(3))
			held[some[i]] = int(r.num(4))
			if r.num(5) >= sweepBatch {
				left = append(left, some[i])
			}
		}
	}
	for _, n := range held {
		sum.Held += n
	}
	if len(all) > 3 {
		all = all[:3] // the same failure, once for each shard
	}
	return sum, partly(errors.Join(all...), swept)
}
