package policy

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func compiled(tb testing.TB, list []*sessionv1.ActivityRule) *Rules {
	tb.Helper()
	r, err := Compile(list)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestDefaultRules(t *testing.T) {
	r := compiled(t, DefaultRules())
	for _, c := range []struct {
		event  string
		origin sessionv1.Event_Origin
		kind   string
		v      Verdict
	}{
		{"step:started", sessionv1.Event_USER, "step_progress", Counts},
		{"input:text", sessionv1.Event_USER, "input", Counts},
		{"chain:compiled", sessionv1.Event_USER, "chain", Counts},
		{"chat:send", sessionv1.Event_USER, "chat", Counts},
		{"command:run", sessionv1.Event_USER, "command", Counts},
		{"session:subscribe", sessionv1.Event_USER, "subscription", Counts},
		{"registry:updated", sessionv1.Event_USER, "", Automated},
		{"file:changed", sessionv1.Event_USER, "", Automated},
		{"anything", sessionv1.Event_USER, "event", Counts},
		{"steps:started", sessionv1.Event_USER, "event", Counts},
		{"input:text", sessionv1.Event_SYSTEM, "", System},
		{"session:extended", sessionv1.Event_USER, "", Lifecycle},
		{"session:subscribed", sessionv1.Event_USER, "", Lifecycle},
	} {
		kind, v := r.Match(c.event, c.origin)
		if v != c.v || (v == Counts && r.Kind(kind) != c.kind) {
			t.Errorf("%s from %s: verdict %d kind %q, want %d %q", c.event, c.origin, v, r.Kind(kind), c.v, c.kind)
		}
	}
}

func TestFirstMatchWins(t *testing.T) {
	r := compiled(t, []*sessionv1.ActivityRule{
		{Pattern: "input:mouse", Ignore: true},
		{Pattern: "input:*", Kind: "input"},
		{Pattern: "robot:*", Kind: "work", IncludeSystem: true},
	})
	for _, c := range []struct {
		event  string
		origin sessionv1.Event_Origin
		v      Verdict
	}{
		{"input:mouse", sessionv1.Event_USER, Automated},
		{"input:mouse2", sessionv1.Event_USER, Counts},
		{"robot:moved", sessionv1.Event_SYSTEM, Counts},
		{"chat:send", sessionv1.Event_USER, Unmatched},
	} {
		if _, v := r.Match(c.event, c.origin); v != c.v {
			t.Errorf("%s: verdict %d, want %d", c.event, v, c.v)
		}
	}
}

func TestCompileNamesEachBadRule(t *testing.T) {
	_, err := Compile([]*sessionv1.ActivityRule{{Pattern: "a*b"}, {Pattern: "ok", Kind: "Not OK"}, {}})
	for _, want := range []string{"activityRules[0].pattern", "activityRules[1].kind", "activityRules[2].pattern"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s in it", err, want)
		}
	}
	if _, err := Compile(make([]*sessionv1.ActivityRule, MaxRules+1)); err == nil {
		t.Error("too many rules compiled")
	}
}

func TestRuleFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules.yaml")
	good := "activityRules:\n  - {pattern: \"robot:*\", kind: work, includeSystem: true}\n  - pattern: \"*\"\n    ignore: true\n"
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := ReadRules(path)
	if err != nil {
		t.Fatal(err)
	}
	if kind, v := r.Match("robot:moved", sessionv1.Event_SYSTEM); v != Counts || r.Kind(kind) != "work" {
		t.Errorf("robot:moved: %d", v)
	}
	if _, v := r.Match("input:text", sessionv1.Event_USER); v != Automated {
		t.Errorf("input:text: %d", v)
	}
	for name, bad := range map[string]string{
		"empty": "", "no rules": "activityRules: []", "unknown key": "activityRules:\n  - {pattern: \"*\", knid: x}",
		"bad pattern": "activityRules:\n  - {pattern: \"**\"}", "two documents": good + "---\n" + good, "not YAML": "\t:",
	} {
		if _, err := ParseRules([]byte(bad)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := ReadRules(path + "2"); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestInternerSharesAndLetsGo(t *testing.T) {
	in := NewInterner(compiled(t, DefaultRules()))
	policy := func(n int) *sessionv1.TTLPolicy {
		return &sessionv1.TTLPolicy{
			MaxExtensions: proto.Int32(int32(n)), ExtendBelow: durationpb.New(1000),
			ActivityRules: []*sessionv1.ActivityRule{{Pattern: strings.Repeat("x", n%100+1)}},
		}
	}
	a, b := in.Terms(policy(1)), in.Terms(policy(1))
	if a != b || a.Rules != b.Rules {
		t.Error("the same policy has two compiled forms")
	}
	if plain := in.Terms(&sessionv1.TTLPolicy{}); plain.Rules != in.base {
		t.Error("a policy without rules does not use the base rules")
	}
	for n := range 100 {
		in.Terms(policy(n + 2))
	}
	// Twice: the terms hold their rules until they are gone themselves.
	for range 2 {
		runtime.GC()
		in.mu.Lock()
		in.sweepAt = 0
		in.sweep()
		in.mu.Unlock()
	}
	if terms, rules := len(in.terms), len(in.rules); terms > 2 || rules > 2 {
		t.Errorf("%d terms and %d rule lists are kept that nobody uses", terms, rules)
	}
	runtime.KeepAlive(a)
}

var states = rapid.Custom(func(t *rapid.T) State {
	at := rapid.Int64Range(0, 1_000_000)
	return State{
		Terms: &Terms{
			Strategy:    sessionv1.TTLPolicy_Strategy(rapid.Int32Range(0, 3).Draw(t, "strategy")),
			ExtendBelow: at.Draw(t, "extendBelow"), MinInterval: at.Draw(t, "minInterval"),
			Rules: defaults,
		},
		Deadline: at.Draw(t, "deadline"), LastCause: at.Draw(t, "lastCause"), Hold: at.Draw(t, "hold"),
		First: at.Draw(t, "first"), Capped: rapid.Bool().Draw(t, "capped"), InFlight: rapid.Bool().Draw(t, "inFlight"),
	}
})

var defaults, _ = Compile(DefaultRules())

func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := states.Draw(t, "state")
		now := rapid.Int64Range(s.First, 2_000_000).Draw(t, "now")
		flush := rapid.Int64Range(1, 100_000).Draw(t, "flush")
		e := Event{
			Type:   rapid.SampledFrom([]string{"input:text", "registry:updated", "session:ended", "session:subscribe", "x"}).Draw(t, "type"),
			Origin: sessionv1.Event_Origin(rapid.Int32Range(0, 2).Draw(t, "origin")),
			Time:   rapid.Int64Range(0, now).Draw(t, "time"),
		}
		before := s
		d := Decide(&s, e, now, flush)
		if s != before {
			t.Fatal("Decide changed the state")
		}
		if d != Decide(&s, e, now, flush) {
			t.Fatal("Decide is not a function")
		}
		if d.Verdict != Counts {
			if e.Origin != sessionv1.Event_SYSTEM && e.Type != "registry:updated" && e.Type != "session:ended" {
				t.Fatalf("%s does not count: %d", e.Type, d.Verdict)
			}
			return
		}
		if e.Origin == sessionv1.Event_SYSTEM || e.Type == "session:ended" {
			t.Fatalf("%s from %s counts", e.Type, e.Origin)
		}
		first := s.First
		if first == 0 {
			first = now
		}
		// Never later than the flush interval or the deadline.
		if d.Due > max(now, min(first+flush, s.Deadline)) {
			t.Fatalf("due %d: first %d + flush %d, deadline %d", d.Due, first, flush, s.Deadline)
		}
		// A capped session is never asked for at once before its time.
		if s.Capped && d.Due < min(first+flush, s.Deadline) {
			t.Fatalf("capped, due %d", d.Due)
		}
		// Where an extension is possible and nothing speaks against it: now.
		if s.Extendable(e.Time) && !s.InFlight && s.Hold <= now && d.Due > now {
			t.Fatalf("extendable, due %d at %d", d.Due, now)
		}
		// A later activity is never less urgent under BELOW_THRESHOLD.
		if s.Terms.Strategy <= sessionv1.TTLPolicy_BELOW_THRESHOLD && s.Extendable(e.Time) && !s.Extendable(e.Time+1) {
			t.Fatal("a later activity is not extendable")
		}
	})
}

func TestDecideDoesNotAllocate(t *testing.T) {
	s := State{Terms: &Terms{Rules: defaults, ExtendBelow: 1000}, Deadline: 1 << 40}
	e := Event{Type: "command:run", Origin: sessionv1.Event_USER, Time: 5}
	if n := testing.AllocsPerRun(100, func() { Decide(&s, e, 10, 15_000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("input:*", "input", false, true, "input:text", int32(1))
	f.Add("*", "", true, false, "session:extended", int32(2))
	f.Fuzz(func(t *testing.T, pattern, kind string, ignore, system bool, event string, origin int32) {
		r, err := Compile([]*sessionv1.ActivityRule{{Pattern: pattern, Kind: kind, Ignore: ignore, IncludeSystem: system}})
		if err != nil {
			return
		}
		n, v := r.Match(event, sessionv1.Event_Origin(origin))
		literal, prefix := strings.CutSuffix(pattern, "*")
		matches := event == literal || (prefix && strings.HasPrefix(event, literal))
		reserved := strings.HasPrefix(event, "session:") && event != TypeSubscribe
		want := Unmatched
		switch {
		case reserved:
			want = Lifecycle
		case !matches:
		case ignore:
			want = Automated
		case origin == int32(sessionv1.Event_SYSTEM) && !system:
			want = System
		default:
			want = Counts
		}
		if v != want {
			t.Errorf("pattern %q event %q: %d, want %d", pattern, event, v, want)
		}
		if v == Counts && kind != "" && r.Kind(n) != kind {
			t.Errorf("kind %q, want %q", r.Kind(n), kind)
		}
	})
}

func FuzzParseRules(f *testing.F) {
	f.Add([]byte("activityRules:\n  - {pattern: \"*\", kind: event}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRules(data)
		if err == nil && len(r.rules) == 0 {
			t.Error("no rules and no error")
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	s := State{Terms: &Terms{Rules: defaults, ExtendBelow: 1000}, Deadline: 1 << 40}
	e := Event{Type: "other:thing", Origin: sessionv1.Event_USER, Time: 5}
	b.ReportAllocs()
	for b.Loop() {
		Decide(&s, e, 10, 15_000)
	}
}
