package policy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"weak"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Lifecycle event types that the store itself appends.
const (
	TypeSubscribe = "session:subscribe"
	TypeCreated   = "session:created"
	TypeExtended  = "session:extended"
	TypeExpiring  = "session:expiring"
	TypeExpired   = "session:expired"
	TypeEnded     = "session:ended"
	TypeDeleted   = "session:deleted"
)

const (
	reserved = "session:"
	// DefaultKind is the kind of a rule that names none.
	DefaultKind = "event"
	// MaxRules bounds a rule list, as the protos do.
	MaxRules = 64
)

var (
	validPattern = regexp.MustCompile(`^[A-Za-z0-9_.:-]*\*?$`)
	validKind    = regexp.MustCompile(`^([a-z][a-z0-9_]*)?$`)
)

// DefaultRules returns what counts as activity where neither a session's
// policy nor the operator says otherwise.
func DefaultRules() []*sessionv1.ActivityRule {
	return []*sessionv1.ActivityRule{
		{Pattern: TypeSubscribe, Kind: "subscription"},
		{Pattern: "step:*", Kind: "step_progress"},
		{Pattern: "input:*", Kind: "input"},
		{Pattern: "chain:*", Kind: "chain"},
		{Pattern: "chat:*", Kind: "chat"},
		{Pattern: "command:*", Kind: "command"},
		{Pattern: "registry:*", Ignore: true},
		{Pattern: "file:*", Ignore: true},
		{Pattern: "*", Kind: DefaultKind},
	}
}

// Verdict says whether an event counts as activity, and why not.
type Verdict uint8

// Verdicts.
const (
	// Counts: it is activity.
	Counts Verdict = iota
	// Automated: the rule that matches ignores it.
	Automated
	// System: it came from an internal service, and the rule does not include
	// those.
	System
	// Unmatched: no rule matches.
	Unmatched
	// Lifecycle: it is the store's own and never counts.
	Lifecycle
)

// labels are the kinds that have a name of their own in metrics. Sessions may
// bring any kind in their policies, which as a label would know no bounds.
var labels = [...]string{"other", "event", "input", "step_progress", "command", "chain", "chat", "file", "subscription"}

// Labels returns the names of kinds in metrics; Rules.Label gives an index.
func Labels() []string { return labels[:] }

// Rules are a compiled rule list. They never change.
type Rules struct {
	rules  []rule
	kinds  []string
	labels []uint8
}

type rule struct {
	literal       string // the pattern without its '*'
	prefix        bool
	ignore        bool
	includeSystem bool
	kind          uint8
}

// Compile checks a rule list and prepares it. The error joins all problems and
// names each rule by its index.
func Compile(list []*sessionv1.ActivityRule) (*Rules, error) {
	if len(list) > MaxRules {
		return nil, fmt.Errorf("activityRules: got %d rules, want at most %d", len(list), MaxRules)
	}
	var errs []error
	out := &Rules{rules: make([]rule, 0, len(list))}
	index := map[string]uint8{}
	for i, r := range list {
		if p := r.GetPattern(); p == "" || len(p) > 128 || !validPattern.MatchString(p) {
			errs = append(errs, fmt.Errorf("activityRules[%d].pattern: got %q, want an event type, or a prefix with * at its end", i, p))
		}
		kind := r.GetKind()
		if len(kind) > 32 || !validKind.MatchString(kind) {
			errs = append(errs, fmt.Errorf("activityRules[%d].kind: got %q, want lower-case letters, digits and _", i, kind))
		}
		c := rule{literal: r.GetPattern(), ignore: r.GetIgnore(), includeSystem: r.GetIncludeSystem()}
		c.literal, c.prefix = strings.CutSuffix(c.literal, "*")
		if !c.ignore {
			if kind == "" {
				kind = DefaultKind
			}
			n, known := index[kind]
			if !known {
				n = uint8(len(out.kinds))
				index[kind] = n
				out.kinds = append(out.kinds, kind)
				out.labels = append(out.labels, uint8(max(0, slices.Index(labels[:], kind))))
			}
			c.kind = n
		}
		out.rules = append(out.rules, c)
	}
	return out, errors.Join(errs...)
}

// Kinds are the kinds of activity that the rules can give, at most MaxRules; a
// kind's number is its index. The slice must not be changed.
func (r *Rules) Kinds() []string { return r.kinds }

// Kind spells the kind with this number.
func (r *Rules) Kind(n uint8) string {
	if int(n) >= len(r.kinds) {
		return ""
	}
	return r.kinds[n]
}

// Label returns the index in Labels of the kind with this number.
func (r *Rules) Label(n uint8) uint8 {
	if int(n) >= len(r.labels) {
		return 0
	}
	return r.labels[n]
}

// Match judges an event by the first rule that matches its type. The kind is
// meaningful only for Counts.
func (r *Rules) Match(eventType string, origin sessionv1.Event_Origin) (kind uint8, v Verdict) {
	// The store's own events are reports of what others did: were they to
	// count, an extension would cause the next one.
	if strings.HasPrefix(eventType, reserved) && eventType != TypeSubscribe {
		return 0, Lifecycle
	}
	for i := range r.rules {
		c := &r.rules[i]
		if !strings.HasPrefix(eventType, c.literal) || (!c.prefix && len(eventType) != len(c.literal)) {
			continue
		}
		switch {
		case c.ignore:
			return 0, Automated
		case origin == sessionv1.Event_SYSTEM && !c.includeSystem:
			return 0, System
		default:
			return c.kind, Counts
		}
	}
	return 0, Unmatched
}

// Interner keeps one compiled form of each distinct rule list and one of each
// distinct terms in use, however many sessions share them. Unused ones are
// dropped. The zero value is not usable; it is safe for concurrent use.
type Interner struct {
	base *Rules

	mu    sync.Mutex
	rules map[string]weak.Pointer[Rules]
	terms map[Terms]weak.Pointer[Terms]
	// sweepAt is the size at which dead entries are looked for again.
	sweepAt int
}

// NewInterner returns an interner; base are the rules of a policy that has
// none of its own.
func NewInterner(base *Rules) *Interner {
	return &Interner{base: base, rules: map[string]weak.Pointer[Rules]{}, terms: map[Terms]weak.Pointer[Terms]{}, sweepAt: 64}
}

// Terms returns the shared terms of a session's frozen policy. Rules that do
// not compile (the store lets none through) fall back to the base rules.
func (in *Interner) Terms(p *sessionv1.TTLPolicy) *Terms {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sweep()
	t := newTerms(p)
	t.Rules = in.compiled(p.GetActivityRules())
	if w, ok := in.terms[t]; ok {
		if have := w.Value(); have != nil {
			return have
		}
	}
	shared := &t
	in.terms[t] = weak.Make(shared)
	return shared
}

func (in *Interner) compiled(list []*sessionv1.ActivityRule) *Rules {
	if len(list) == 0 {
		return in.base
	}
	key := ruleKey(list)
	if w, ok := in.rules[key]; ok {
		if have := w.Value(); have != nil {
			return have
		}
	}
	r, err := Compile(list)
	if err != nil {
		return in.base
	}
	in.rules[key] = weak.Make(r)
	return r
}

// sweep drops entries whose value nobody uses. The terms map holds its rules
// strongly by key, so terms go first and rules at the next sweep.
func (in *Interner) sweep() {
	if len(in.rules)+len(in.terms) < in.sweepAt {
		return
	}
	for k, w := range in.terms {
		if w.Value() == nil {
			delete(in.terms, k)
		}
	}
	for k, w := range in.rules {
		if w.Value() == nil {
			delete(in.rules, k)
		}
	}
	in.sweepAt = max(64, 2*(len(in.rules)+len(in.terms)))
}

// ruleKey spells a rule list so that two lists are equal when their keys are.
func ruleKey(list []*sessionv1.ActivityRule) string {
	var b strings.Builder
	for _, r := range list {
		b.WriteString(r.GetPattern())
		b.WriteByte(0)
		b.WriteString(r.GetKind())
		b.WriteByte(0)
		flags := byte('0')
		if r.GetIgnore() {
			flags |= 1
		}
		if r.GetIncludeSystem() {
			flags |= 2
		}
		b.WriteByte(flags)
		b.WriteByte(0)
	}
	return b.String()
}
