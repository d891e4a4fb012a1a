package memory

import (
	"context"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Census looks at every live session, a shard at a time.
func (s *Store) Census(ctx context.Context) (storage.Census, error) {
	out := storage.Census{ByPhase: map[sessionv1.Session_Phase]int64{}}
	for _, sh := range s.shards {
		if err := s.usable(ctx); err != nil {
			return out, err
		}
		now := s.now()
		sh.mu.Lock()
		for _, x := range sh.sessions {
			if x.over != sessionv1.Session_PHASE_UNSPECIFIED {
				continue
			}
			out.ByPhase[x.phase(now)]++
			if x.state.Capped(x.terms) {
				out.AtCap++
			}
		}
		sh.mu.Unlock()
	}
	return out, nil
}
