package storage

import sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"

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

// RequestKey names the request that a session is created by, among those of all
// projects and users.
func RequestKey(s *sessionv1.Session, key string) string {
	// NUL is in none of the three, so no two of them spell the same key.
	return s.GetProject() + "\x00" + s.GetUser() + "\x00" + key
}
