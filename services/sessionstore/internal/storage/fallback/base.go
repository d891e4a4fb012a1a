package fallback

import (
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Base returns the last known state of a session, with its phase as of now, and
// how old that is. It fails with storage.ErrNotFound for one that is not there
// any more, and never will be, and with storage.ErrUnavailable where nothing is
// known, or nothing that is to be believed. The store under this one is not
// asked.
func (s *Store) Base(id string) (*sessionv1.Session, time.Duration, error) {
	e, ok := s.sessions.get(id)
	if !ok || e.standing == doubted {
		return nil, 0, storage.ErrUnavailable
	}
	now := s.now()
	age := time.Duration(max(0, now-e.seen)) * time.Millisecond
	switch {
	case e.standing != known:
		return nil, age, storage.ErrNotFound
	case age > s.opts.MaxStale:
		return nil, 0, storage.ErrUnavailable
	}
	return view(e.session, now), age, nil
}
