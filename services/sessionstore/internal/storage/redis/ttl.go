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

func (s *Store) extended(ctx context.Context, misses *absences, sh *shard, r reply, err error) storage.ExtendResult {
	if err == nil && r.num(exOutcome) == none {
		if err = misses.confirm(ctx, sh, storage.ErrNotFound); errors.Is(err, storage.ErrNotFound) {
			return storage.ExtendResult{Response: lifetime.Missing()}
		}
	}
	if err != nil {
		return storage.ExtendResult{Err: err}
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
	if x, ended := s.endings.get(id); ended && x.kind == endingDeleted {
		return storage.Explanation{}, storage.ErrNotFound
	}
	out, err := s.explanation(cmd.Val())
	return out, s.confirm(ctx, sh, err)
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
