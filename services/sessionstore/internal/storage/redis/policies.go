package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// GetPolicy returns a project's policy.
func (s *Store) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	ctx, end := s.span(ctx, "get_policy")
	cmd := goredis.NewStringCmd(ctx, "hget", policiesKey, project)
	err := s.conn.read.do(ctx, cmd)
	if errors.Is(err, goredis.Nil) {
		end(nil)
		return nil, storage.ErrNotFound
	}
	end(err)
	if err != nil {
		return nil, failure(err)
	}
	return decodePolicy(cmd.Val())
}

func decodePolicy(raw string) (*sessionv1.ProjectPolicy, error) {
	p := &sessionv1.ProjectPolicy{}
	if err := proto.Unmarshal([]byte(raw), p); err != nil {
		return nil, fmt.Errorf("stored policy: %w", err)
	}
	return p, nil
}

// SetPolicy stores a project's policy.
func (s *Store) SetPolicy(ctx context.Context, project string, policy *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	p := &sessionv1.ProjectPolicy{Project: project, Policy: policy, UpdateTime: lifetime.Time(s.now())}
	raw, err := proto.Marshal(p)
	if err != nil {
		return nil, err
	}
	return p, check(s.run(ctx, s.scripts.policy.on(s.shards[0], "", project, raw)))
}

// DeletePolicy removes a project's policy.
func (s *Store) DeletePolicy(ctx context.Context, project string) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	return check(s.run(ctx, s.scripts.policy.on(s.shards[0], "", project, "")))
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
	projects, err := s.lexRange(ctx, projectsKey, "", at.After, limit+1)
	if err != nil || len(projects) == 0 {
		return storage.PolicyPage{}, err
	}
	var page storage.PolicyPage
	if len(projects) > limit {
		projects = slices.Clip(projects[:limit])
		page.Next = storage.EncodePageToken("policies", storage.ListQuery{}, storage.PageToken{After: projects[limit-1]})
	}
	args := []any{"hmget", policiesKey}
	for _, p := range projects {
		args = append(args, p)
	}
	cmd := goredis.NewSliceCmd(ctx, args...)
	if err := failure(s.conn.read.do(ctx, cmd)); err != nil {
		return storage.PolicyPage{}, err
	}
	for _, v := range cmd.Val() {
		if raw, ok := v.(string); ok {
			p, err := decodePolicy(raw)
			if err != nil {
				return storage.PolicyPage{}, err
			}
			page.Policies = append(page.Policies, p)
		}
	}
	return page, nil
}
