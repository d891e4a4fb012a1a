package lifetime

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// MaxCauses is how many causes of extensions a session remembers by event id,
// under EVERY_ACTIVITY. Activities not later than one that was forgotten are
// taken for duplicates, so that the same call never extends twice.
const MaxCauses = 32

// State is what of a session's life changes. Times are Unix milliseconds.
type State struct {
	// Over is true once the session was ended or swept.
	Over bool
	// Expire is the deadline.
	Expire int64
	// Count is how many extensions were granted.
	Count int32
	// LastActivity is the event time of the latest counted activity.
	LastActivity int64
	// LastCause is the latest event time of an activity that extended; 0 for
	// none.
	LastCause int64
	// Causes are the latest MaxCauses causes, oldest first; EVERY_ACTIVITY only.
	Causes []Cause
	// Forgotten is the latest event time among the causes no longer kept.
	Forgotten int64
}

// Cause is an activity that extended a session.
type Cause struct {
	EventID string
	Time    int64
}

// Extend judges an activity by its own time and returns what becomes of the
// session. Future times are clamped to now. It is the reference: the Redis
// script extend.lua must agree with it.
//
//	over                          -> ENDED
//	activity at/after deadline    -> TOO_LATE     (last activity unchanged)
//	caused an extension before    -> NOT_NEEDED
//	enough left                   -> NOT_NEEDED   (BELOW_THRESHOLD)
//	min_interval not over         -> TOO_SOON     (ONCE_PER_INTERVAL)
//	extensions used up, or at cap -> CAPPED
//	otherwise                     -> EXTENDED by extension, at most to the cap
func Extend(t Terms, s State, activity int64, eventID string, now int64) (sessionv1.ExtendTTLResponse_Outcome, State) {
	activity = min(activity, now)
	if s.Over {
		return sessionv1.ExtendTTLResponse_ENDED, s
	}
	if activity >= s.Expire {
		return sessionv1.ExtendTTLResponse_TOO_LATE, s
	}
	s.LastActivity = max(s.LastActivity, activity)
	switch t.Strategy {
	case sessionv1.TTLPolicy_ONCE_PER_INTERVAL:
		if s.LastCause != 0 {
			if activity <= s.LastCause {
				return sessionv1.ExtendTTLResponse_NOT_NEEDED, s
			}
			if activity-s.LastCause < t.MinInterval {
				return sessionv1.ExtendTTLResponse_TOO_SOON, s
			}
		}
	case sessionv1.TTLPolicy_EVERY_ACTIVITY:
		if counted(s, activity, eventID) {
			return sessionv1.ExtendTTLResponse_NOT_NEEDED, s
		}
	default:
		if s.Expire-activity >= t.ExtendBelow || activity <= s.LastCause {
			return sessionv1.ExtendTTLResponse_NOT_NEEDED, s
		}
	}
	if s.Capped(t) {
		return sessionv1.ExtendTTLResponse_CAPPED, s
	}
	s.Expire = min(s.Expire+t.Extension, t.Cap)
	s.Count++
	s.LastCause = max(s.LastCause, activity)
	if t.Strategy == sessionv1.TTLPolicy_EVERY_ACTIVITY {
		s = remember(s, Cause{EventID: eventID, Time: activity})
	}
	return sessionv1.ExtendTTLResponse_EXTENDED, s
}

func counted(s State, activity int64, eventID string) bool {
	if eventID == "" {
		return activity <= s.LastCause
	}
	for _, c := range s.Causes {
		if c.EventID == eventID {
			return true
		}
	}
	return activity <= s.Forgotten
}

func remember(s State, c Cause) State {
	causes := append(make([]Cause, 0, len(s.Causes)+1), s.Causes...)
	causes = append(causes, c)
	for len(causes) > MaxCauses {
		s.Forgotten = max(s.Forgotten, causes[0].Time)
		causes = causes[1:]
	}
	s.Causes = causes
	return s
}

// Reason explains an outcome with its numbers, for people.
func Reason(o sessionv1.ExtendTTLResponse_Outcome, t Terms, before, after State, activity int64) string {
	left := short(before.Expire - activity)
	switch o {
	case sessionv1.ExtendTTLResponse_EXTENDED:
		return fmt.Sprintf("extended by %s with %s left, extension %d of %d", short(after.Expire-before.Expire), left, after.Count, t.Max)
	case sessionv1.ExtendTTLResponse_NOT_NEEDED:
		if t.Strategy == sessionv1.TTLPolicy_BELOW_THRESHOLD && before.Expire-activity >= t.ExtendBelow {
			// What nearly every answer says.
			return "not extended: " + left + " left, extends below " + short(t.ExtendBelow)
		}
		return "not extended: this activity, or a later one, has extended the session already"
	case sessionv1.ExtendTTLResponse_CAPPED:
		return fmt.Sprintf("not extended: %s left, cap reached with %d of %d extensions, %s after creation", left, before.Count, t.Max, short(before.Expire-t.Create))
	case sessionv1.ExtendTTLResponse_TOO_LATE:
		return fmt.Sprintf("not extended: the activity came %s after the deadline", short(activity-before.Expire))
	case sessionv1.ExtendTTLResponse_TOO_SOON:
		return fmt.Sprintf("not extended: the last extension was %s before, min_interval is %s", short(activity-before.LastCause), short(t.MinInterval))
	case sessionv1.ExtendTTLResponse_ENDED:
		return "not extended: the session is over"
	default:
		return "not extended: there is no such session"
	}
}

func short(millis int64) string {
	d := time.Duration(millis) * time.Millisecond
	if d >= time.Minute {
		d = d.Round(time.Second)
	}
	return d.String()
}

// Phase tells what a session that is not over is doing at now.
func Phase(t Terms, s State, now int64) sessionv1.Session_Phase {
	switch {
	case now >= s.Expire:
		return sessionv1.Session_EXPIRED
	case s.Expire-now < t.ExtendBelow:
		return sessionv1.Session_EXPIRING
	case now-s.LastActivity < t.ActiveWindow:
		return sessionv1.Session_ACTIVE
	default:
		return sessionv1.Session_IDLE
	}
}

// Capped says that no further extension is possible.
func (s State) Capped(t Terms) bool { return s.Count >= t.Max || s.Expire >= t.Cap }

// TTL describes a session's deadline as of now. Phase is the caller's to
// correct where the session is over.
func TTL(t Terms, s State, phase sessionv1.Session_Phase, p *sessionv1.TTLPolicy, now int64) *sessionv1.TTL {
	m := &ttlMemory{}
	m.fill(t, s, phase, p, now)
	return &m.ttl
}

// ttlMemory is a TTL and what it points to in one piece: extending is most of
// what a store does, and each answer has two of them.
type ttlMemory struct {
	ttl                               sessionv1.TTL
	create, expire, cap, lastActivity timestamppb.Timestamp
	remaining                         durationpb.Duration
}

func (m *ttlMemory) fill(t Terms, s State, phase sessionv1.Session_Phase, p *sessionv1.TTLPolicy, now int64) {
	left := max(0, s.Expire-now)
	if s.Over {
		left = 0
	}
	m.remaining.Seconds, m.remaining.Nanos = left/1000, int32(left%1000*1e6)
	m.ttl.CreateTime = SetTime(&m.create, t.Create)
	m.ttl.ExpireTime = SetTime(&m.expire, s.Expire)
	m.ttl.Remaining = &m.remaining
	m.ttl.ExtensionCount = s.Count
	m.ttl.MaxExtensions = t.Max
	m.ttl.CapTime = SetTime(&m.cap, t.Cap)
	m.ttl.Phase = phase
	m.ttl.Policy = p
	m.ttl.LastActivityTime = SetTime(&m.lastActivity, s.LastActivity)
}

// TTLOf describes the deadline of a session as a backend returned it.
func TTLOf(sess *sessionv1.Session, now int64) *sessionv1.TTL {
	t := NewTerms(Millis(sess.GetCreateTime()), sess.GetTtlPolicy())
	s := State{
		Over:         sess.GetEndTime() != nil,
		Expire:       Millis(sess.GetExpireTime()),
		Count:        sess.GetExtensionCount(),
		LastActivity: Millis(sess.GetLastActivityTime()),
	}
	return TTL(t, s, sess.GetPhase(), sess.GetTtlPolicy(), now)
}

// Response describes one judged activity. Phases are those of before and
// after, as of now.
func Response(o sessionv1.ExtendTTLResponse_Outcome, t Terms, before, after State, activity int64, over sessionv1.Session_Phase, p *sessionv1.TTLPolicy, now int64) *sessionv1.ExtendTTLResponse {
	activity = min(activity, now)
	phase := func(s State) sessionv1.Session_Phase {
		if s.Over {
			return over
		}
		return Phase(t, s, now)
	}
	m := &struct {
		response      sessionv1.ExtendTTLResponse
		before, after ttlMemory
	}{}
	m.before.fill(t, before, phase(before), p, now)
	m.after.fill(t, after, phase(after), p, now)
	m.response.Outcome, m.response.Reason = o, Reason(o, t, before, after, activity)
	m.response.Before, m.response.After = &m.before.ttl, &m.after.ttl
	return &m.response
}

// Missing answers a report of activity in a session that is not there.
func Missing() *sessionv1.ExtendTTLResponse {
	const o = sessionv1.ExtendTTLResponse_NOT_FOUND
	return &sessionv1.ExtendTTLResponse{Outcome: o, Reason: Reason(o, Terms{}, State{}, State{}, 0)}
}
