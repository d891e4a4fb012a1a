package memory

import (
	"context"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// moves says whether a session has other times than its creation was accepted with:
// an attempt whose reply was lost has stored it.
func (sh *shard) moves(x *session, in *sessionv1.Session) bool {
	return x.over == sessionv1.Session_PHASE_UNSPECIFIED && x.terms.Create != lifetime.Millis(in.GetCreateTime())
}

// move gives a live session the times that its creation was accepted with, and
// unlocks its shard.
func (s *Store) move(ctx context.Context, x *session, in *sessionv1.Session, m moment) (*sessionv1.Session, bool, error) {
	sh := s.shardOf(in.GetId())
	tx := s.begin(sh)
	old, create := x.terms.Create, lifetime.Millis(in.GetCreateTime())
	sh.unschedule(x)
	if x.warned == x.state.Expire {
		x.warned += create - old
	}
	x.terms = lifetime.NewTerms(create, x.view.GetTtlPolicy())
	x.state.Expire += create - old
	if x.state.LastActivity == old {
		x.state.LastActivity = lifetime.Millis(in.GetLastActivityTime())
	}
	sh.schedule(x)
	x.refresh(m.now, func(v *sessionv1.Session) {
		v.CreateTime, v.CapTime = lifetime.Time(create), lifetime.Time(x.terms.Cap)
		if lifetime.Millis(v.GetUpdateTime()) == old {
			v.UpdateTime = in.GetUpdateTime()
		}
	})
	tx.put(x)
	view := x.view
	return view, false, s.commit(ctx, tx)
}
