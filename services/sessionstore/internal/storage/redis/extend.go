package redis

import (
	"context"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Most activity changes no deadline, and needs no key but the session's: such a
// call costs less, and works while the session's slot moves. An extension needs
// the log, the indexes and the feed as well. So extend.lua is called with the
// session alone, and again with all of its keys where it asks for them; or with
// all at once, for a session that was extended the last time.

// forecast remembers sessions whose last activity extended them, as far as they do
// not displace each other: a wrong forecast costs a round trip, or a few
// microseconds. The zero value is ready for use.
type forecast struct {
	slots [4096]atomic.Uint64
}

var forecastSeed = maphash.MakeSeed()

func (f *forecast) slot(id string) (*atomic.Uint64, uint64) {
	h := maphash.String(forecastSeed, id)
	return &f.slots[h%uint64(len(f.slots))], h
}

// extends returns whether the next activity of a session may well extend it.
func (f *forecast) extends(id string) bool {
	at, h := f.slot(id)
	return at.Load() == h
}

// learn takes the outcome of an activity.
func (f *forecast) learn(id string, extended bool) {
	at, h := f.slot(id)
	if was := at.Load() == h; was == extended {
		return
	}
	if extended {
		at.Store(h)
	} else {
		at.CompareAndSwap(h, 0)
	}
}

// Extend judges activities, one script each, all in one round trip, and in another
// one those that need more keys than they declared.
func (s *Store) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	out, misses := make([]storage.ExtendResult, len(items)), &absences{s: s}
	if len(items) == 1 {
		// The usual single call rides with those of other callers.
		if sh := s.shardOf(items[0].SessionID); sh != nil && s.hasEnded(items[0].SessionID) {
			out[0] = s.extendOver(ctx, misses, sh, items[0])
		} else if sh != nil {
			r, err := s.extendOne(ctx, sh, items[0], present)
			out[0] = s.extended(ctx, misses, sh, r, err)
		} else {
			out[0].Response = lifetime.Missing()
		}
		return out, nil
	}
	at := s.declareAll(items)
	b := extensions{s: s, items: items, out: out, replies: make([]reply, len(items)), errs: make([]error, len(items))}
	for i := range items {
		sh := s.shardOf(items[i].SessionID)
		if sh == nil {
			out[i].Response = lifetime.Missing()
			continue
		}
		if s.hasEnded(items[i].SessionID) {
			out[i] = s.extendOver(ctx, misses, sh, items[i])
			continue
		}
		b.add(i, sh, at[sh])
	}
	b.run(ctx)
	again := b.undecided()
	if len(again) > 0 {
		b.items = slices.Clone(items) // the caller's stay as they are
	}
	for _, i := range again {
		b.items[i].Time = b.replies[i].judged(b.items[i].Time)
		b.add(i, s.shardOf(items[i].SessionID), true)
	}
	b.run(ctx)
	for i := range items {
		if out[i].Response == nil && out[i].Err == nil {
			out[i] = s.extended(ctx, misses, s.shardOf(items[i].SessionID), b.replies[i], b.errs[i])
			s.learn(ctx, items[i].SessionID, b.replies[i], b.errs[i])
		}
	}
	return out, nil
}

// declareAll returns the shards on which the activities of a batch declare all keys
// in their first calls: where a session is in the batch more than once, since its
// activities are judged in their order, and where one may well be extended. All of a
// shard or none, so that its feed has their extensions in the order of the batch.
func (s *Store) declareAll(items []storage.Activity) map[*shard]bool {
	seen, at := make(map[string]struct{}, len(items)), map[*shard]bool{}
	for _, a := range items {
		_, again := seen[a.SessionID]
		seen[a.SessionID] = struct{}{}
		if again || s.forecast.extends(a.SessionID) {
			at[s.shardOf(a.SessionID)] = true
		}
	}
	return at
}

// extensions are the calls for a batch of activities.
type extensions struct {
	s       *Store
	items   []storage.Activity
	out     []storage.ExtendResult
	replies []reply // of the last call for each item
	errs    []error

	calls []invocation
	place []int // of the calls among the items
}

func (b *extensions) add(i int, sh *shard, all bool) {
	b.calls, b.place = append(b.calls, b.s.extension(sh, b.items[i], present, all)), append(b.place, i)
}

// run makes the calls that were added.
func (b *extensions) run(ctx context.Context) {
	if len(b.calls) == 0 {
		return
	}
	replies, errs := b.s.runAll(ctx, "extend", b.calls)
	for j, i := range b.place {
		b.replies[i], b.errs[i] = replies[j], errs[j]
	}
	b.calls, b.place = b.calls[:0], b.place[:0]
}

// undecided are the items whose calls need more keys.
func (b *extensions) undecided() (items []int) {
	for i, r := range b.replies {
		if b.errs[i] == nil && r != nil && r.num(exOutcome) == again {
			items = append(items, i)
		}
	}
	return items
}

// extendOne judges one activity.
func (s *Store) extendOne(ctx context.Context, sh *shard, a storage.Activity, as asOf) (reply, error) {
	all := s.forecast.extends(a.SessionID)
	r, err := s.run(ctx, s.extension(sh, a, as, all))
	if all && isMoving(err) {
		// Some of its keys have moved already. It may do without those.
		if one, failed := s.run(ctx, s.extension(sh, a, as, false)); failed == nil && one.num(exOutcome) != again {
			r, err = one, nil
		}
	}
	if err == nil && r.num(exOutcome) == again {
		a.Time = r.judged(a.Time)
		r, err = s.run(ctx, s.extension(sh, a, as, true))
	}
	s.learn(ctx, a.SessionID, r, err)
	return r, err
}

// judged is the time that an activity without one was judged by, in a reply that
// asks for more keys: the second call must be about the same time.
func (r reply) judged(at time.Time) time.Time {
	if at.IsZero() {
		return time.UnixMilli(r.num(1))
	}
	return at
}

// learn makes the forecast for a session's next activity. While earlier versions
// may still run, it also keeps the request key of a session that was extended: they
// made it expire soon after the deadline that the session had then.
func (s *Store) learn(ctx context.Context, id string, r reply, err error) {
	if err != nil {
		return
	}
	extended := len(r) > exExpireAfter
	s.forecast.learn(id, extended)
	if found := s.dataFormat.Load(); extended && found != nil && *found != format {
		_ = (&repair{s: s}).reindex(ctx, []string{id}) // else a repair comes to it
	}
}

func (s *Store) extension(sh *shard, a storage.Activity, as asOf, all bool) invocation {
	sc := s.scripts.extend
	declared := sc.required
	if all {
		declared = len(sc.keys)
	}
	at := any("")
	if !a.Time.IsZero() {
		at = a.Time.UnixMilli()
	}
	counts, sum := a.Stands()
	call := sc.declare(sh, a.SessionID, declared, 7+2*len(counts)).
		with(a.SessionID, at, a.EventID, a.Kind, a.Traceparent, sum, as.arg())
	for kind, n := range counts {
		call = call.with(kind, n)
	}
	return call
}
