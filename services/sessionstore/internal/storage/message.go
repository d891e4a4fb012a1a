package storage

import (
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// Shallow copies a session's message, of which some fields are to be set anew;
// the parts are shared.
func Shallow(s *sessionv1.Session) *sessionv1.Session {
	return &sessionv1.Session{
		Id: s.GetId(), User: s.GetUser(), Project: s.GetProject(), Labels: s.GetLabels(), Data: s.GetData(),
		Phase: s.GetPhase(), Revision: s.GetRevision(), CreateTime: s.GetCreateTime(), UpdateTime: s.GetUpdateTime(),
		ExpireTime: s.GetExpireTime(), LastActivityTime: s.GetLastActivityTime(), ExtensionCount: s.GetExtensionCount(),
		CapTime: s.GetCapTime(), TtlPolicy: s.GetTtlPolicy(), EndTime: s.GetEndTime(), EndReason: s.GetEndReason(),
	}
}

// CreatedAt returns a new session as created at another time, in Unix milliseconds:
// all its times are moved by as much as that is from its create_time.
func CreatedAt(in *sessionv1.Session, create int64) *sessionv1.Session {
	by := create - lifetime.Millis(in.GetCreateTime())
	if by == 0 {
		return in
	}
	out := Shallow(in)
	out.CreateTime, out.CapTime = lifetime.Time(create), lifetime.Time(lifetime.NewTerms(create, in.GetTtlPolicy()).Cap)
	out.UpdateTime = lifetime.Time(lifetime.Millis(in.GetUpdateTime()) + by)
	out.LastActivityTime = lifetime.Time(lifetime.Millis(in.GetLastActivityTime()) + by)
	out.ExpireTime = lifetime.Time(lifetime.Millis(in.GetExpireTime()) + by)
	return out
}

// RequestKey names the request that a session is created by, among those of all
// projects and users.
func RequestKey(s *sessionv1.Session, key string) string {
	// NUL is in none of the three, so no two of them spell the same key.
	return s.GetProject() + "\x00" + s.GetUser() + "\x00" + key
}
