package journal

import (
	"context"
	"errors"
	"slices"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Extend reports activity. Those reports that the store underneath did not
// answer, and those of sessions that have writes waiting, are accepted here.
func (s *Store) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	items = slices.Clone(items)
	out := make([]storage.ExtendResult, len(items))
	s.awaitReplay(ctx, sessionsOf(items)...)
	var ask []int
	for i := range items {
		if items[i].Time.IsZero() {
			items[i].Time = s.now()
		}
		if !s.holds(items[i].SessionID) {
			ask = append(ask, i)
		}
	}
	asked, err := s.extendBelow(ctx, items, ask, out)
	if err != nil {
		return nil, err
	}
	var places []place
	marked := false
	for i, a := range items {
		if asked[i] && !wanted(ctx, out[i].Err) {
			continue
		}
		if at, taken := s.extend(ctx, a, &out[i]); taken {
			places, marked = append(places, at), true
		}
	}
	for _, at := range places {
		if err := at.wait(ctx); err != nil {
			return nil, err
		}
	}
	if marked {
		s.opts.Marked(ctx)
	}
	return out, nil
}

func sessionsOf(items []storage.Activity) []string {
	out := make([]string, len(items))
	for i, a := range items {
		out[i] = a.SessionID
	}
	return out
}

// extendBelow asks the store underneath about some of the items.
func (s *Store) extendBelow(ctx context.Context, items []storage.Activity, which []int, out []storage.ExtendResult) (asked []bool, err error) {
	asked = make([]bool, len(items))
	if len(which) == 0 {
		return asked, nil
	}
	some := items
	if len(which) < len(items) {
		some = make([]storage.Activity, len(which))
		for j, i := range which {
			some[j] = items[i]
		}
	}
	res, err := s.Store.Extend(ctx, some)
	if err != nil && !wanted(ctx, err) {
		return nil, err
	}
	for j, i := range which {
		asked[i] = true
		if err != nil {
			out[i].Err = err
		} else {
			out[i] = res[j]
		}
	}
	return asked, nil
}

// extend accepts one report, which the store underneath failed to answer where
// out has an error; false where the answer is not from here.
func (s *Store) extend(ctx context.Context, a storage.Activity, out *storage.ExtendResult) (place, bool) {
	for {
		at, err := s.report(ctx, a, out)
		if err == nil {
			return at, true
		}
		if !errors.Is(err, errLeft) {
			if *out = (storage.ExtendResult{Err: err}); errors.Is(err, storage.ErrNotFound) { // deleted here
				*out = storage.ExtendResult{Response: lifetime.Missing()}
			}
			return place{}, false
		}
		one, err := s.Store.Extend(ctx, []storage.Activity{a})
		if err == nil {
			*out, err = one[0], one[0].Err
		} else {
			*out = storage.ExtendResult{Err: err}
		}
		if !wanted(ctx, err) {
			return place{}, false
		}
	}
}

// mayHaveExpired says whether a replica may have expired a session: its deadline is
// before the latest hold, or was passed settle_max ago by what the store underneath
// knows.
func (s *Store) mayHaveExpired(sess *sessionv1.Session, now time.Time) bool {
	known := lifetime.Millis(sess.GetExpireTime())
	if known < s.said.Load() {
		return true
	}
	if q := s.waiting.of(sess.GetId()); q != nil {
		known = q.deadline // it never changes
	}
	return known > 0 && known < s.settled(now).UnixMilli()
}

func (s *Store) report(ctx context.Context, a storage.Activity, out *storage.ExtendResult) (place, error) {
	// What was applied must be written down, also when the caller leaves between.
	ctx = context.WithoutCancel(ctx)
	return s.accept(a.SessionID, with{cause: out.Err}, func(at time.Time) (*storage.Write, error) {
		before, err := s.shadow.Get(ctx, a.SessionID)
		if err != nil {
			return nil, err
		}
		if before.GetEndTime() == nil && s.mayHaveExpired(before, at) {
			return nil, unavailable(errWaiting)
		}
		res, err := s.shadow.Extend(ctx, []storage.Activity{a})
		if err != nil {
			return nil, err
		}
		*out = res[0]
		switch out.Response.GetOutcome() {
		case sessionv1.ExtendTTLResponse_TOO_LATE, sessionv1.ExtendTTLResponse_ENDED:
			if before.GetEndTime() == nil {
				return nil, unavailable(errWaiting)
			}
			return nil, nil //nolint:nilnil // nothing to be replayed
		case sessionv1.ExtendTTLResponse_EXTENDED:
			return s.told(ctx, &storage.Write{SessionID: a.SessionID, At: at, Extend: &a}), nil
		default:
			after, err := s.shadow.Get(ctx, a.SessionID)
			if err != nil || !after.GetLastActivityTime().AsTime().After(before.GetLastActivityTime().AsTime()) && !judgedBelow(before, a) {
				return nil, err
			}
		}
		return &storage.Write{SessionID: a.SessionID, At: at, Extend: &a}, nil
	})
}

// judgedBelow says whether only the store underneath can tell if an activity that is
// no later than the last one extends the session: which events did is not known here.
func judgedBelow(sess *sessionv1.Session, a storage.Activity) bool {
	return a.EventID != "" && sess.GetTtlPolicy().GetStrategy() == sessionv1.TTLPolicy_EVERY_ACTIVITY
}
