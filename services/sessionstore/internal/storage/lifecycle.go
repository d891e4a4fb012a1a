package storage

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Types of the store's own events. All other types are the clients'.
const (
	TypeCreated  = "session:created"
	TypeExtended = "session:extended"
	TypeExpiring = "session:expiring"
	TypeExpired  = "session:expired"
	TypeEnded    = "session:ended"
	TypeDeleted  = "session:deleted"
)

// Lifecycle is a change of a session's life as numbers, from which every
// backend builds the same event. Times are Unix milliseconds; fields that a
// type does not use are zero.
type Lifecycle struct {
	Type string
	// At is when the store did it.
	At int64
	// Cursor is the one it should get in the session's log; empty for that of At.
	Cursor string
	// Expire is the deadline after the change.
	Expire int64
	// Count is how many extensions were granted, this one included.
	Count int32

	// Of TypeExtended only.
	Before       int64
	Max          int32
	ActivityTime int64
	ActivityKind string
	CauseEventID string
	Traceparent  string

	// Reason is why the session ended, of TypeEnded only.
	Reason string
}

// Event builds the event: origin SYSTEM, source "stoker", and an id that is
// unique in its session and the same whenever it is built.
func (l Lifecycle) Event() *sessionv1.Event {
	e := &sessionv1.Event{
		Id:          l.Type,
		Type:        l.Type,
		Source:      "stoker",
		Time:        timestamppb.New(time.UnixMilli(l.At)),
		Traceparent: l.Traceparent,
		Origin:      sessionv1.Event_SYSTEM,
	}
	data := map[string]*structpb.Value{}
	switch l.Type {
	case TypeCreated:
		data["expireTime"] = timeValue(l.Expire)
	case TypeExtended:
		e.Id += "/" + strconv.Itoa(int(l.Count))
		data["before"] = timeValue(l.Before)
		data["after"] = timeValue(l.Expire)
		data["extensionCount"] = structpb.NewNumberValue(float64(l.Count))
		data["maxExtensions"] = structpb.NewNumberValue(float64(l.Max))
		data["activityTime"] = timeValue(l.ActivityTime)
		data["activityKind"] = structpb.NewStringValue(l.ActivityKind)
		data["causeEventId"] = structpb.NewStringValue(l.CauseEventID)
	case TypeExpiring:
		e.Id += "/" + strconv.FormatInt(l.Expire, 10)
		data["expireTime"] = timeValue(l.Expire)
		remaining := time.Duration(max(0, l.Expire-l.At)) * time.Millisecond
		data["remaining"] = structpb.NewStringValue(strconv.FormatFloat(remaining.Seconds(), 'f', -1, 64) + "s")
	case TypeExpired:
		data["expireTime"] = timeValue(l.Expire)
		data["extensionCount"] = structpb.NewNumberValue(float64(l.Count))
	case TypeEnded:
		data["reason"] = structpb.NewStringValue(l.Reason)
	}
	if len(data) > 0 {
		e.Data = structpb.NewStructValue(&structpb.Struct{Fields: data})
	}
	return e
}

func timeValue(millis int64) *structpb.Value {
	return structpb.NewStringValue(time.UnixMilli(millis).UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}

// WithCursor returns the event as its log shows it.
func WithCursor(e *sessionv1.Event, cursor string) *sessionv1.Event {
	return &sessionv1.Event{
		Id: e.GetId(), Type: e.GetType(), Source: e.GetSource(), Subject: e.GetSubject(), Time: e.GetTime(),
		Data: e.GetData(), Traceparent: e.GetTraceparent(), Cursor: cursor, Origin: e.GetOrigin(),
	}
}

// FeedEvent returns the event as the feed carries it: without its place in the
// log, and without data unless it is one of the store's own.
func FeedEvent(e *sessionv1.Event, lifecycle bool) *sessionv1.Event {
	out := WithCursor(e, "")
	if !lifecycle {
		out.Data = nil
	}
	return out
}
