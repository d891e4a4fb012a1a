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
