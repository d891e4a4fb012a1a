package resilient

import (
	"context"
	"errors"
	"slices"

	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// A write that failed may have been applied. Each of those that are tried again
// here is one that the contract makes the same call when it comes twice.

// created is what Create answers.
type created struct {
	session *sessionv1.Session
	existed bool
}

// Create stores a session: the same id again is the same call.
func (s *Store) Create(ctx context.Context, in *sessionv1.Session, requestKey string) (*sessionv1.Session, bool, error) {
	out, err := retried(ctx, s, s.writes, func(ctx context.Context) (created, error) {
		sess, existed, err := s.Store.Create(ctx, in, requestKey)
		// What exists under this id was made by a try before.
		return created{sess, existed && sess.GetId() != in.GetId()}, err
	})
	return out.session, out.existed, err
}

// Update changes a session. Its name makes it the same call when a try before
// was applied, which would be taken for somebody else's change otherwise.
func (s *Store) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	if u.WriteID == "" {
		u.WriteID = storage.NewWriteID()
	}
	return retried(ctx, s, s.writes, func(ctx context.Context) (*sessionv1.Session, error) { return s.Store.Update(ctx, id, u) })
}

// End ends a session.
func (s *Store) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	return retried(ctx, s, s.writes, func(ctx context.Context) (*sessionv1.Session, error) { return s.Store.End(ctx, id, reason) })
}

// Delete removes a session. After a try whose answer was lost, a session that
// is not there was removed by it.
func (s *Store) Delete(ctx context.Context, id string) error {
	return s.gone(ctx, func(ctx context.Context) error { return s.Store.Delete(ctx, id) })
}

// DeletePolicy removes a policy, as Delete does a session.
func (s *Store) DeletePolicy(ctx context.Context, project string) error {
	return s.gone(ctx, func(ctx context.Context) error { return s.Store.DeletePolicy(ctx, project) })
}

func (s *Store) gone(ctx context.Context, op func(ctx context.Context) error) error {
	unknown := false
	_, err := retried(ctx, s, s.writes, func(ctx context.Context) (struct{}, error) {
		err := op(ctx)
		if unknown && errors.Is(err, storage.ErrNotFound) {
			err = nil
		}
		unknown = unknown || worth(err)
		return struct{}{}, err
	})
	return err
}

// RevokeUser ends a user's sessions. It is not tried again, as it would count
// only those that were left.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	return once(ctx, s.writes, func(ctx context.Context) (int, error) {
		return s.Store.RevokeUser(ctx, project, user, except, reason)
	})
}

// Append appends events, which are the same again by their ids.
func (s *Store) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	return retried(ctx, s, s.writes, func(ctx context.Context) ([]string, error) { return s.Store.Append(ctx, id, events) })
}

// Replay applies a write that was accepted before. It was promised, so it takes
// no place among the writes and is never turned away: who replays goes on one
// by one.
func (s *Store) Replay(ctx context.Context, w storage.Write) error {
	_, err := resilience.Retry(ctx, s.retrier, worth, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.Store.Replay(ctx, w)
	})
	return err
}

// SetPolicy stores a policy.
func (s *Store) SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	return retried(ctx, s, s.writes, func(ctx context.Context) (*sessionv1.ProjectPolicy, error) {
		return s.Store.SetPolicy(ctx, project, p)
	})
}

// Extend reports activity, which is the same again by its time; those that were
// not answered are tried again alone.
func (s *Store) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	items = slices.Clone(items)
	for i := range items {
		if items[i].Time.IsZero() {
			items[i].Time = s.clock()
		}
	}
	return retriedEach(ctx, s, s.writes, items, s.Store.Extend, func(r storage.ExtendResult) error { return r.Err })
}

// retriedEach calls op for many items, and again for those that failed.
func retriedEach[T, R any](ctx context.Context, s *Store, l *resilience.Limit, items []T, op func(ctx context.Context, items []T) ([]R, error), failure func(R) error) ([]R, error) {
	var out []R
	left := items
	var place []int // of left in items; all of them at first
	_, err := retried(ctx, s, l, func(ctx context.Context) (struct{}, error) {
		res, err := op(ctx, left)
		if err != nil {
			return struct{}{}, err
		}
		if place == nil {
			out = res
			place = make([]int, len(items))
			for i := range place {
				place[i] = i
			}
		}
		var again []T
		var at []int
		var why error
		for i, r := range res {
			out[place[i]] = r
			if err := failure(r); worth(err) {
				again, at, why = append(again, left[i]), append(at, place[i]), err
			}
		}
		left, place = again, at
		return struct{}{}, why
	})
	if out != nil {
		return out, nil // each item has its own error
	}
	return nil, err
}
