package fallback

import (
	"context"
	"errors"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Create stores a session.
func (s *Store) Create(ctx context.Context, in *sessionv1.Session, requestKey string) (*sessionv1.Session, bool, error) {
	t := s.ticket()
	out, existed, err := s.Store.Create(ctx, in, requestKey)
	if err == nil {
		s.sessions.learn(out, t)
	}
	return out, existed, err
}

// Update changes a session. One whose outcome is unknown leaves what is known,
// for an outage: that is old then, as it says.
func (s *Store) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	t := s.ticket()
	out, err := s.Store.Update(ctx, id, u)
	s.saw(id, out, err, t)
	if unknown(err) {
		s.sessions.outdated(id)
	}
	return out, err
}

// End ends a session, which is not answered as live from then on.
func (s *Store) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	t := s.ticket()
	out, err := s.Store.End(ctx, id, reason)
	s.saw(id, out, err, t)
	if unknown(err) {
		s.sessions.doubt(id)
	}
	return out, err
}

// Delete removes a session for good.
func (s *Store) Delete(ctx context.Context, id string) error {
	t := s.ticket()
	err := s.Store.Delete(ctx, id)
	switch {
	case err == nil:
		s.sessions.delete(id, s.now())
	case errors.Is(err, storage.ErrNotFound):
		s.sessions.missing(id, t)
	case unknown(err):
		s.sessions.doubt(id)
	}
	return err
}

// RevokeUser ends a user's sessions.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	n, err := s.Store.RevokeUser(ctx, project, user, except, reason)
	if err == nil || unknown(err) {
		s.sessions.revoke(project, user, except, reason, s.now(), err == nil)
	}
	return n, err
}

// Extend reports activity.
func (s *Store) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	t := s.ticket()
	out, err := s.Store.Extend(ctx, items)
	if unknown(err) {
		for _, a := range items {
			s.sessions.outdated(a.SessionID)
		}
	}
	for i, r := range out {
		if unknown(r.Err) {
			s.sessions.outdated(items[i].SessionID)
		}
		if r.Err == nil {
			s.sessions.extended(items[i].SessionID, r.Response, t)
		}
	}
	return out, err
}

// Append appends events.
func (s *Store) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	t := s.ticket()
	cursors, err := s.Store.Append(ctx, id, events)
	if err != nil {
		s.saw(id, nil, err, t)
	}
	return cursors, err
}

// Replay applies a write that was accepted before. What is known of the session
// is from before it, and what it is now was not said.
func (s *Store) Replay(ctx context.Context, w storage.Write) error {
	err := s.Store.Replay(ctx, w)
	if w.Delete && err == nil {
		s.sessions.delete(w.SessionID, s.now())
	} else {
		s.sessions.doubt(w.SessionID)
	}
	return err
}

// SetPolicy stores a project's policy.
func (s *Store) SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	t := s.ticket()
	out, err := s.Store.SetPolicy(ctx, project, p)
	s.changed(project, out, err, t)
	return out, err
}

// DeletePolicy removes a project's policy.
func (s *Store) DeletePolicy(ctx context.Context, project string) error {
	t := s.ticket()
	err := s.Store.DeletePolicy(ctx, project)
	s.changed(project, nil, err, t)
	return err
}

// changed takes the outcome of a change of a project's policy to p, nil for
// none.
func (s *Store) changed(project string, p *sessionv1.ProjectPolicy, err error, t ticket) {
	switch {
	case err == nil, errors.Is(err, storage.ErrNotFound):
		s.policies.set(project, p, t)
		s.catalog.learn(project, p)
	case unknown(err):
		s.policies.drop(project)
		s.catalog.doubt(project)
	}
}
