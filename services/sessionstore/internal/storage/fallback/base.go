package fallback

import (
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Base returns the last known state of a session with its phase as of now; false
// where it is not known, in doubt, too old or gone.
func (s *Store) Base(id string) (*sessionv1.Session, bool) {
	e, ok := s.sessions.get(id)
	if !ok || e.standing != known || e.assumed {
		return nil, false
	}
	now := s.now()
	if time.Duration(now-e.seen)*time.Millisecond > s.opts.MaxStale {
		return nil, false
	}
	return view(e.session, now), true
}
