package fallback

import (
	"github.com/maypok86/otter/v2"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// policy is what is remembered of a project: its policy, or nil for none.
type policy struct {
	policy *sessionv1.ProjectPolicy
	seen   int64
	at     uint64
}

// policies remembers projects' policies within a bound.
type policies struct {
	cache *otter.Cache[string, policy]
	order *order
}

func newPolicies(most int, o *order) (*policies, error) {
	k := &policies{order: o}
	var err error
	k.cache, err = otter.New(&otter.Options[string, policy]{
		MaximumSize: most,
		OnAtomicDeletion: func(e otter.DeletionEvent[string, policy]) {
			if e.Cause != otter.CauseReplacement {
				o.bar(ofProject, e.Key)
			}
		},
	})
	return k, err
}

// learn takes what the store answered to a read; nil for no policy. Of two
// answers that were under way at once, the policy set later counts.
func (k *policies) learn(project string, p *sessionv1.ProjectPolicy, t ticket) {
	k.cache.Compute(project, func(old policy, found bool) (policy, otter.ComputeOp) {
		overlaps := found && t.at < old.at
		if k.order.barred(ofProject, project, t.at) {
			return old, otter.InvalidateOp // it may be older than what the caller was told
		}
		if overlaps && lifetime.Millis(p.GetUpdateTime()) <= lifetime.Millis(old.policy.GetUpdateTime()) {
			return old, otter.CancelOp
		}
		return policy{policy: p, seen: t.now, at: k.order.next()}, otter.WriteOp
	})
}

// set takes a change that the store has made; nil for none left.
func (k *policies) set(project string, p *sessionv1.ProjectPolicy, t ticket) {
	k.order.bar(ofProject, project)
	k.cache.Set(project, policy{policy: p, seen: t.now, at: k.order.next()})
}

// drop forgets a project, of which a change may or may not have been made.
func (k *policies) drop(project string) {
	k.order.bar(ofProject, project)
	k.cache.Invalidate(project)
}

// forget forgets every project. Answers that are under way are barred by barAll.
func (k *policies) forget() { k.cache.InvalidateAll() }

// get returns what is known of a project.
func (k *policies) get(project string) (policy, bool) { return k.cache.GetIfPresent(project) }
