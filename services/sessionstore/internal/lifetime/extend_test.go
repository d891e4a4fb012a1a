package lifetime

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	extended  = sessionv1.ExtendTTLResponse_EXTENDED
	notNeeded = sessionv1.ExtendTTLResponse_NOT_NEEDED
	capped    = sessionv1.ExtendTTLResponse_CAPPED
	tooLate   = sessionv1.ExtendTTLResponse_TOO_LATE
	tooSoon   = sessionv1.ExtendTTLResponse_TOO_SOON
	ended     = sessionv1.ExtendTTLResponse_ENDED
)

func policy(base, extension, below time.Duration, most int32) *sessionv1.TTLPolicy {
	return Resolve(&sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(base), Extension: durationpb.New(extension),
		ExtendBelow: durationpb.New(below), MaxExtensions: proto.Int32(most),
	}, DefaultPolicy())
}

func TestExtendOutcomes(t *testing.T) {
	const created = 1_000_000
	sec := func(n float64) int64 { return created + int64(math.Round(n*1000)) }
	below := policy(6*time.Second, 4*time.Second, 5*time.Second, 2)
	interval := proto.Clone(below).(*sessionv1.TTLPolicy)
	interval.Strategy, interval.MinInterval = sessionv1.TTLPolicy_ONCE_PER_INTERVAL, durationpb.New(3*time.Second)
	every := proto.Clone(below).(*sessionv1.TTLPolicy)
	every.Strategy = sessionv1.TTLPolicy_EVERY_ACTIVITY
	limited := proto.Clone(below).(*sessionv1.TTLPolicy)
	limited.MaxLifetime = durationpb.New(9 * time.Second)

	type step struct {
		at, now float64
		id      string
		want    sessionv1.ExtendTTLResponse_Outcome
		expire  float64
	}
	for _, c := range []struct {
		name   string
		policy *sessionv1.TTLPolicy
		over   bool
		steps  []step
	}{
		{"enough is left", below, false, []step{{0.5, 0.5, "", notNeeded, 6}}},
		{"below the threshold, to the cap", below, false, []step{{2, 2, "", extended, 10}, {6, 6, "", extended, 14}, {10, 10, "", capped, 14}}},
		{"exactly at the threshold", below, false, []step{{1, 1, "", notNeeded, 6}, {1.001, 1.1, "", extended, 10}}},
		{"processed after the deadline, happened before it", below, false, []step{{5.9, 60, "", extended, 10}}},
		{"happened at the deadline", below, false, []step{{6, 7, "", tooLate, 6}}},
		{"from the future, clamped to now", below, false, []step{{500, 0.5, "", notNeeded, 6}, {500, 2, "", extended, 10}}},
		{"the same again", below, false, []step{{5.5, 5.5, "e", extended, 10}, {5.5, 5.6, "e", notNeeded, 10}}},
		{"over", below, true, []step{{1, 1, "", ended, 6}}},
		{"at most to max_lifetime", limited, false, []step{{2, 2, "", extended, 9}, {5, 5, "", capped, 9}}},
		{"once per interval", interval, false, []step{{0.5, 0.5, "", extended, 10}, {1, 1, "", tooSoon, 10}, {0.5, 1, "", notNeeded, 10}, {3.5, 4, "", extended, 14}, {9, 9, "", capped, 14}}},
		{"every activity, by id", every, false, []step{{0.1, 0.1, "a", extended, 10}, {0.1, 0.1, "a", notNeeded, 10}, {0.1, 0.1, "b", extended, 14}, {0.2, 0.2, "c", capped, 14}}},
		{"every activity, no id", every, false, []step{{0.1, 0.1, "", extended, 10}, {0.1, 0.1, "", notNeeded, 10}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			terms := NewTerms(created, c.policy)
			s := State{Over: c.over, Expire: Deadline(created, c.policy), LastActivity: created}
			for i, st := range c.steps {
				o, next := Extend(terms, s, sec(st.at), st.id, sec(st.now))
				if o != st.want || next.Expire != sec(st.expire) {
					t.Fatalf("step %d: %v, deadline %+.1fs, want %v, %+.1fs", i, o, float64(next.Expire-created)/1000, st.want, st.expire)
				}
				want := max(s.LastActivity, min(sec(st.at), sec(st.now)))
				if o == tooLate || o == ended {
					want = s.LastActivity
				}
				if next.LastActivity != want {
					t.Fatalf("step %d: last activity %d, want %d", i, next.LastActivity, want)
				}
				s = next
			}
		})
	}
}

// TestExtendInvariants holds the rules against random histories: the deadline
// never moves back nor beyond the cap, the count fits it, the last activity
// never moves back, and the same call twice never extends twice, not even
// after any number of others.
func TestExtendInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		created := int64(1_000_000)
		p := policy(
			time.Duration(rapid.Int64Range(1, 20_000).Draw(t, "base"))*time.Millisecond,
			time.Duration(rapid.Int64Range(1, 20_000).Draw(t, "extension"))*time.Millisecond,
			time.Duration(rapid.Int64Range(0, 30_000).Draw(t, "below"))*time.Millisecond,
			rapid.Int32Range(0, 50).Draw(t, "max"))
		p.Strategy = sessionv1.TTLPolicy_Strategy(rapid.IntRange(1, 3).Draw(t, "strategy"))
		p.MinInterval = durationpb.New(time.Duration(rapid.Int64Range(0, 5000).Draw(t, "interval")) * time.Millisecond)
		if rapid.Bool().Draw(t, "limited") {
			p.MaxLifetime = durationpb.New(p.BaseTtl.AsDuration() + time.Duration(rapid.Int64Range(0, 60_000).Draw(t, "more"))*time.Millisecond)
		}
		terms := NewTerms(created, p)
		s := State{Expire: Deadline(created, p), LastActivity: created}
		type call struct {
			at int64
			id string
		}
		causes := map[call]bool{}
		now := created
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += rapid.Int64Range(0, 3000).Draw(t, "pass")
			c := call{at: now + rapid.Int64Range(-10_000, 2000).Draw(t, "at")}
			if rapid.Bool().Draw(t, "named") {
				c.id = fmt.Sprint(rapid.IntRange(0, 300).Draw(t, "id"))
			}
			o, next := Extend(terms, s, c.at, c.id, now)
			seen := call{at: min(c.at, now), id: c.id}
			switch {
			case next.Expire < s.Expire, next.LastActivity < s.LastActivity, next.Count < s.Count:
				t.Fatalf("moved back: %+v to %+v", s, next)
			case next.Expire > terms.Cap && next.Expire > s.Expire:
				t.Fatalf("beyond the cap %d: %+v", terms.Cap, next)
			case next.Expire > created+p.BaseTtl.AsDuration().Milliseconds()+int64(next.Count)*terms.Extension:
				t.Fatalf("more than its extensions: %+v", next)
			case (o == extended) != (next.Count == s.Count+1), (o == extended) != (next.Expire > s.Expire):
				t.Fatalf("%v: %+v to %+v", o, s, next)
			case o == extended && causes[seen]:
				t.Fatalf("extended twice by %+v", seen)
			case o == tooLate && seen.at < s.Expire:
				t.Fatalf("activity before the deadline was too late")
			case len(next.Causes) > MaxCauses:
				t.Fatalf("%d causes kept", len(next.Causes))
			}
			if o == extended {
				causes[seen] = true
			}
			if again, _ := Extend(terms, next, c.at, c.id, now); again == extended && seen.at < now {
				t.Fatalf("%v, then extended by the same call", o)
			}
			s = next
		}
	})
}

func TestReasonsCarryNumbers(t *testing.T) {
	p := policy(24*time.Hour, 6*time.Hour, 10*time.Minute, 4)
	terms := NewTerms(0, p)
	hour := time.Hour.Milliseconds()
	for _, c := range []struct {
		activity int64
		s        State
		want     string
	}{
		{20*hour + hour*4/5, State{Expire: 24 * hour}, "not extended: 3h12m0s left, extends below 10m0s"},
		{24*hour - 1000, State{Expire: 24 * hour}, "extended by 6h0m0s with 1s left, extension 1 of 4"},
		{48*hour - 1000, State{Expire: 48 * hour, Count: 4}, "cap reached with 4 of 4 extensions, 48h0m0s after creation"},
		{25 * hour, State{Expire: 24 * hour}, "1h0m0s after the deadline"},
	} {
		o, after := Extend(terms, c.s, c.activity, "", c.activity)
		if got := Reason(o, terms, c.s, after, c.activity); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q in it", o, got, c.want)
		}
	}
}

func TestPhase(t *testing.T) {
	terms := NewTerms(0, policy(time.Hour, time.Hour, 10*time.Minute, 1))
	minute := time.Minute.Milliseconds()
	for _, c := range []struct {
		now, activity int64
		want          sessionv1.Session_Phase
	}{
		{0, 0, sessionv1.Session_ACTIVE},
		{5*minute - 1, 0, sessionv1.Session_ACTIVE},
		{5 * minute, 0, sessionv1.Session_IDLE},
		{50 * minute, 0, sessionv1.Session_IDLE},
		{50*minute + 1, 50 * minute, sessionv1.Session_EXPIRING},
		{60 * minute, 59 * minute, sessionv1.Session_EXPIRED},
	} {
		if got := Phase(terms, State{Expire: 60 * minute, LastActivity: c.activity}, c.now); got != c.want {
			t.Errorf("at %d min with activity at %d: %v, want %v", c.now/minute, c.activity/minute, got, c.want)
		}
	}
}
