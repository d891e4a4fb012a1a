// Package lifetime holds the rules of how long a session lives, as pure
// functions of times in milliseconds: no I/O, no clock of its own.
package lifetime

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// DefaultPolicy returns the policy that applies where neither the session nor
// its project says otherwise: 24 h, extended 4 times by 6 h when less than
// 10 min are left.
func DefaultPolicy() *sessionv1.TTLPolicy {
	return &sessionv1.TTLPolicy{
		BaseTtl:       durationpb.New(24 * time.Hour),
		Extension:     durationpb.New(6 * time.Hour),
		MaxExtensions: proto.Int32(4),
		ExtendBelow:   durationpb.New(10 * time.Minute),
		MinInterval:   durationpb.New(time.Hour),
		ActiveWindow:  durationpb.New(5 * time.Minute),
		Strategy:      sessionv1.TTLPolicy_BELOW_THRESHOLD,
	}
}

// Resolve returns a new policy that takes each field from the first layer that
// sets it. Layers may be nil.
func Resolve(layers ...*sessionv1.TTLPolicy) *sessionv1.TTLPolicy {
	out := &sessionv1.TTLPolicy{}
	for _, l := range layers {
		if l == nil {
			continue
		}
		inherit(&out.BaseTtl, l.GetBaseTtl())
		inherit(&out.Extension, l.GetExtension())
		inherit(&out.MaxExtensions, l.MaxExtensions)
		inherit(&out.ExtendBelow, l.GetExtendBelow())
		inherit(&out.MinInterval, l.GetMinInterval())
		inherit(&out.MaxLifetime, l.GetMaxLifetime())
		inherit(&out.ActiveWindow, l.GetActiveWindow())
		if out.GetStrategy() == sessionv1.TTLPolicy_STRATEGY_UNSPECIFIED {
			out.Strategy = l.GetStrategy()
		}
		if len(out.GetActivityRules()) == 0 {
			out.ActivityRules = l.GetActivityRules()
		}
	}
	return out
}

// Complete says whether a policy sets every field, so that no other layer matters.
func Complete(p *sessionv1.TTLPolicy) bool {
	return p.GetBaseTtl() != nil && p.GetExtension() != nil && p != nil && p.MaxExtensions != nil && p.GetExtendBelow() != nil &&
		p.GetMinInterval() != nil && p.GetMaxLifetime() != nil && p.GetActiveWindow() != nil &&
		p.GetStrategy() != sessionv1.TTLPolicy_STRATEGY_UNSPECIFIED && len(p.GetActivityRules()) > 0
}

func inherit[T any](dst **T, src *T) {
	if *dst == nil {
		*dst = src
	}
}

// Violation names a field of a policy that contradicts another.
type Violation struct {
	// Field is the JSON name in the policy.
	Field string
	// Value is what it is.
	Value string
	// Want says what was expected.
	Want string
}

// Check returns what is contradictory in an effective policy, that is, one with
// every field but max_lifetime set. Ranges of single fields are the protos'.
func Check(p *sessionv1.TTLPolicy) []Violation {
	var out []Violation
	bad := func(field string, d time.Duration, want string, args ...any) {
		out = append(out, Violation{Field: field, Value: d.String(), Want: fmt.Sprintf(want, args...)})
	}
	for _, f := range []struct {
		name string
		d    *durationpb.Duration
	}{{"baseTtl", p.GetBaseTtl()}, {"extension", p.GetExtension()}, {"activeWindow", p.GetActiveWindow()}} {
		if d := f.d.AsDuration(); d < time.Millisecond {
			bad(f.name, d, "at least 1ms")
		}
	}
	if p.GetMaxLifetime() == nil {
		return out
	}
	most := p.GetMaxLifetime().AsDuration()
	if base := p.GetBaseTtl().AsDuration(); base > most {
		bad("maxLifetime", most, "at least baseTtl, which is %s", base)
	}
	if ext := p.GetExtension().AsDuration(); ext > most {
		bad("extension", ext, "at most maxLifetime, which is %s", most)
	}
	return out
}

// Terms are the numbers of a session's frozen policy: durations and absolute
// Unix times, all in milliseconds.
type Terms struct {
	Create       int64
	Extension    int64
	Max          int32
	ExtendBelow  int64
	MinInterval  int64
	ActiveWindow int64
	Strategy     sessionv1.TTLPolicy_Strategy
	// Cap is the latest deadline the session can ever reach.
	Cap int64
}

// NewTerms computes the terms of a session created at createMillis under an
// effective policy.
func NewTerms(createMillis int64, p *sessionv1.TTLPolicy) Terms {
	t := Terms{
		Create:       createMillis,
		Extension:    p.GetExtension().AsDuration().Milliseconds(),
		Max:          p.GetMaxExtensions(),
		ExtendBelow:  p.GetExtendBelow().AsDuration().Milliseconds(),
		MinInterval:  p.GetMinInterval().AsDuration().Milliseconds(),
		ActiveWindow: p.GetActiveWindow().AsDuration().Milliseconds(),
		Strategy:     p.GetStrategy(),
	}
	t.Cap = Deadline(createMillis, p) + saturatingMul(int64(t.Max), t.Extension)
	if p.GetMaxLifetime() != nil {
		t.Cap = min(t.Cap, createMillis+p.GetMaxLifetime().AsDuration().Milliseconds())
	}
	t.Cap = min(t.Cap, maxMillis)
	return t
}

// Deadline is the first deadline of a session created at createMillis.
func Deadline(createMillis int64, p *sessionv1.TTLPolicy) int64 {
	return createMillis + p.GetBaseTtl().AsDuration().Milliseconds()
}

// maxMillis is the end of the year 9999, the latest time that a protobuf
// timestamp and RFC 3339 can express.
const maxMillis = 253402300799999

func saturatingMul(a, b int64) int64 {
	if b != 0 && a > math.MaxInt64/4/b {
		return math.MaxInt64 / 4
	}
	return a * b
}

// Time converts Unix milliseconds to a timestamp.
func Time(millis int64) *timestamppb.Timestamp {
	return timestamppb.New(time.UnixMilli(millis))
}

// SetTime is Time in memory that is there already, which it returns.
func SetTime(t *timestamppb.Timestamp, millis int64) *timestamppb.Timestamp {
	at := time.UnixMilli(millis)
	t.Seconds, t.Nanos = at.Unix(), int32(at.Nanosecond())
	return t
}

// Millis converts a timestamp to Unix milliseconds.
func Millis(t *timestamppb.Timestamp) int64 {
	return t.GetSeconds()*1000 + int64(t.GetNanos())/1e6
}
