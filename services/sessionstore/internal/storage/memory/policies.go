package memory

import (
	"context"
	"sync"

	"github.com/google/btree"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// policies keeps the policy of each project, ordered by project.
type policies struct {
	mu   sync.Mutex
	tree *btree.BTreeG[*sessionv1.ProjectPolicy]
}

func (p *policies) init() {
	p.tree = btree.NewG(16, func(a, b *sessionv1.ProjectPolicy) bool { return a.GetProject() < b.GetProject() })
}

// GetPolicy returns a project's policy.
func (s *Store) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	s.policies.mu.Lock()
	defer s.policies.mu.Unlock()
	p, ok := s.policies.tree.Get(&sessionv1.ProjectPolicy{Project: project})
	if !ok {
		return nil, storage.ErrNotFound
	}
	return p, nil
}

// SetPolicy stores a project's policy.
func (s *Store) SetPolicy(ctx context.Context, project string, policy *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	p := &sessionv1.ProjectPolicy{Project: project, Policy: policy, UpdateTime: lifetime.Time(s.now())}
	s.policies.mu.Lock()
	s.policies.tree.ReplaceOrInsert(p)
	tx := s.beginPolicies()
	tx.policy(p)
	return p, s.commit(ctx, tx)
}

// DeletePolicy removes a project's policy.
func (s *Store) DeletePolicy(ctx context.Context, project string) error {
	if err := s.writable(ctx); err != nil {
		return err
	}
	s.policies.mu.Lock()
	key := &sessionv1.ProjectPolicy{Project: project}
	if _, ok := s.policies.tree.Delete(key); !ok {
		s.policies.mu.Unlock()
		return storage.ErrNotFound
	}
	tx := s.beginPolicies()
	tx.policy(key)
	return s.commit(ctx, tx)
}

// ListPolicies pages through the policies by project.
func (s *Store) ListPolicies(ctx context.Context, limit int, token string) (storage.PolicyPage, error) {
	if err := s.usable(ctx); err != nil {
		return storage.PolicyPage{}, err
	}
	at, err := storage.ParsePageToken("policies", storage.ListQuery{Token: token}, 1)
	if err != nil {
		return storage.PolicyPage{}, err
	}
	s.policies.mu.Lock()
	defer s.policies.mu.Unlock()
	var page storage.PolicyPage
	s.policies.tree.AscendGreaterOrEqual(&sessionv1.ProjectPolicy{Project: at.After}, func(p *sessionv1.ProjectPolicy) bool {
		if p.GetProject() == at.After {
			return true
		}
		if len(page.Policies) == limit {
			last := page.Policies[limit-1].GetProject()
			page.Next = storage.EncodePageToken("policies", storage.ListQuery{}, storage.PageToken{After: last})
			return false
		}
		page.Policies = append(page.Policies, p)
		return true
	})
	return page, nil
}
