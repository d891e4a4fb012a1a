package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Verdicts of the scripts.
const (
	none       = -1
	over       = -2
	superseded = -3
)

func check(r reply, err error) error {
	if err != nil {
		return err
	}
	switch r.num(0) {
	case none:
		return storage.ErrNotFound
	case over:
		return storage.ErrEnded
	case superseded:
		return storage.ErrConflict
	default:
		return nil
	}
}

// Create stores a new session.
func (s *Store) Create(ctx context.Context, in *sessionv1.Session, requestKey string) (*sessionv1.Session, bool, error) {
	if err := s.usable(ctx); err != nil {
		return nil, false, err
	}
	sh := s.shardOf(in.GetId())
	if sh == nil {
		return nil, false, &storage.InvalidError{Field: "id", Value: storage.Shorten(in.GetId()), Want: "a session id"}
	}
	r, err := s.create(ctx, sh, in, requestKey, present)
	if err != nil {
		return nil, false, err
	}
	existed := r.num(0) == 1
	stored, err := s.answered(r, 2)
	if errors.Is(err, storage.ErrNotFound) && !existed {
		return in, false, nil // a try before has made it, and somebody else has deleted it since
	}
	return stored, existed, err
}

// answered is the session that a script has answered with, as of now.
func (s *Store) answered(r reply, at int) (*sessionv1.Session, error) {
	if at >= len(r) {
		return nil, fmt.Errorf("script returned %d values", len(r))
	}
	vals, _ := r[at].([]any)
	return s.session(vals, s.now())
}

func (s *Store) create(ctx context.Context, sh *shard, in *sessionv1.Session, requestKey string, at asOf) (reply, error) {
	request := ""
	if requestKey != "" {
		request = storage.RequestKey(in, requestKey)
	}
	fields, err := hash(in, request)
	if err != nil {
		return nil, err
	}
	return s.run(ctx, s.scripts.create, sh, append([]any{in.GetId(), request, s.opts.MaxEvents, s.keep(), at.arg()}, fields...)...)
}

// Get returns a session as of now.
func (s *Store) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	ctx, end := s.span(ctx, "get")
	cmd := read(ctx, sh, id)
	err := failure(s.conn.read.do(ctx, cmd))
	end(err)
	if err != nil {
		return nil, err
	}
	return s.parsed(cmd.Val(), s.now())
}

// GetMany answers per id, in one round trip for each node.
func (s *Store) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	ctx, end := s.span(ctx, "get_many")
	defer end(nil)
	out := make([]storage.SessionResult, len(ids))
	cmds := make([]*goredis.StringSliceCmd, len(ids))
	asked := make([]goredis.Cmder, 0, len(ids))
	for i, id := range ids {
		if sh := s.shardOf(id); sh != nil {
			cmds[i] = read(ctx, sh, id)
			asked = append(asked, cmds[i])
		} else {
			out[i].Err = storage.ErrNotFound
		}
	}
	if err := s.conn.read.pipeline(ctx, asked...); err != nil {
		return nil, err
	}
	now := s.now()
	for i, cmd := range cmds {
		if cmd == nil {
			continue
		}
		if out[i].Err = failure(cmd.Err()); out[i].Err == nil {
			out[i].Session, out[i].Err = s.parsed(cmd.Val(), now)
		}
	}
	return out, nil
}

// End ends a session.
func (s *Store) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	r, err := s.end(ctx, sh, id, reason, present)
	if err != nil {
		return nil, err
	}
	return s.answered(r, 1)
}

func (s *Store) end(ctx context.Context, sh *shard, id, reason string, at asOf) (reply, error) {
	r, err := s.run(ctx, s.scripts.end, sh, id, reason, s.opts.Retention.Milliseconds(), s.opts.MaxEvents, at.arg())
	return r, check(r, err)
}

// Delete removes a session at once.
func (s *Store) Delete(ctx context.Context, id string) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return storage.ErrNotFound
	}
	return check(s.run(ctx, s.scripts.remove, sh, s.removal(id, present)...))
}

func (s *Store) removal(id string, at asOf) []any {
	return []any{id, at.arg(), s.opts.Retention.Milliseconds()}
}

// RevokeUser ends all live sessions of a user in a project, a bounded number
// in each script.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	const batch = 200
	sh := s.shards[storage.UserShard(project, user, len(s.shards))]
	total, after := 0, ""
	for {
		args := []any{user + "\x00" + project + "\x00", after, batch, reason, s.opts.Retention.Milliseconds(), s.opts.MaxEvents}
		for _, id := range except {
			args = append(args, id)
		}
		r, err := s.run(ctx, s.scripts.revoke, sh, args...)
		if err != nil {
			return total, err
		}
		total += int(r.num(0))
		if after = r.text(1); after == "" {
			return total, nil
		}
	}
}

// List pages through sessions.
func (s *Store) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	if err := s.usable(ctx); err != nil {
		return storage.SessionPage{}, err
	}
	return storage.ListPages(q, len(s.shards), func(n int, src storage.ListSource, after string, limit int) ([]storage.Listed, error) {
		sh := s.shards[n]
		if src.Retired {
			return s.listRetired(ctx, sh, after, limit)
		}
		index := sh.byProject()
		if src.ByUser {
			index = sh.byUser()
		}
		keys, err := s.lexRange(ctx, index, src.Prefix, after, limit)
		if err != nil {
			return nil, err
		}
		ids := make([]string, len(keys))
		for i, k := range keys {
			ids[i] = storage.LastPart(k)
		}
		return s.listed(ctx, keys, ids)
	})
}

// lexRange reads an index from after on, within a prefix.
func (s *Store) lexRange(ctx context.Context, index, prefix, after string, limit int) ([]string, error) {
	from, to := "-", "+"
	if prefix != "" {
		// The prefix ends in NUL; the next byte value ends the range.
		from, to = "["+prefix, "("+prefix[:len(prefix)-1]+"\x01"
	}
	if after > prefix {
		from = "(" + after
	}
	cmd := goredis.NewStringSliceCmd(ctx, "zrangebylex", index, from, to, "limit", 0, limit)
	if err := s.conn.read.do(ctx, cmd); err != nil {
		return nil, failure(err)
	}
	return cmd.Val(), nil
}

func (s *Store) listed(ctx context.Context, keys, ids []string) ([]storage.Listed, error) {
	found, err := s.GetMany(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]storage.Listed, len(keys))
	for i, r := range found {
		if r.Err != nil && !errors.Is(r.Err, storage.ErrNotFound) {
			return nil, r.Err // a partial list would look like the whole
		}
		out[i] = storage.Listed{Key: keys[i], Session: r.Session}
	}
	return out, nil
}

func (s *Store) listRetired(ctx context.Context, sh *shard, after string, limit int) ([]storage.Listed, error) {
	// Keys are "<purge ms, 15 digits> NUL <id>". Entries of the same
	// millisecond as the last one seen are read again and dropped.
	from, _, _ := strings.Cut(after, "\x00")
	if from == "" {
		from = "-inf"
	}
	var keys, ids []string
	for offset := 0; len(keys) < limit; offset += limit {
		cmd := goredis.NewZSliceCmd(ctx, "zrangebyscore", sh.retired(), from, "+inf", "withscores", "limit", offset, limit)
		if err := failure(s.conn.read.do(ctx, cmd)); err != nil {
			return nil, err
		}
		for _, z := range cmd.Val() {
			id, _ := z.Member.(string)
			if key := fmt.Sprintf("%015d\x00%s", int64(z.Score), id); key > after && len(keys) < limit {
				keys, ids = append(keys, key), append(ids, id)
			}
		}
		if len(cmd.Val()) < limit {
			break
		}
	}
	return s.listed(ctx, keys, ids)
}

// ActiveUsers pages through the users with live sessions.
func (s *Store) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	if err := s.usable(ctx); err != nil {
		return storage.UserPage{}, err
	}
	return storage.UserPages(q, len(s.shards), func(n int, prefix, after string, limit int) ([]*sessionv1.ActiveUser, error) {
		return s.activeUsers(ctx, s.shards[n], prefix, after, limit)
	})
}

func (s *Store) activeUsers(ctx context.Context, sh *shard, prefix, after string, limit int) ([]*sessionv1.ActiveUser, error) {
	const chunk = 1000
	now := float64(s.now())
	var out []*sessionv1.ActiveUser
	for {
		keys, err := s.lexRange(ctx, sh.byProject(), prefix, after, chunk)
		if err != nil || len(keys) == 0 {
			return out, err
		}
		args := []any{"zmscore", sh.deadlines()}
		for _, k := range keys {
			args = append(args, storage.LastPart(k))
		}
		deadlines := goredis.NewFloatSliceCmd(ctx, args...)
		if err := failure(s.conn.read.do(ctx, deadlines)); err != nil {
			return nil, err
		}
		for i, k := range keys {
			after = k
			parts := strings.SplitN(k, "\x00", 3)
			if len(parts) != 3 || parts[1] == "" || deadlines.Val()[i] <= now {
				continue
			}
			if last := len(out) - 1; last >= 0 && out[last].GetProject() == parts[0] && out[last].GetUser() == parts[1] {
				out[last].SessionCount++
				continue
			}
			if len(out) == limit {
				return out, nil
			}
			out = append(out, &sessionv1.ActiveUser{Project: parts[0], User: parts[1], SessionCount: 1})
		}
		if len(keys) < chunk {
			return out, nil
		}
	}
}

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
	return p, check(s.run(ctx, s.scripts.policy, s.shards[0], project, raw))
}

// DeletePolicy removes a project's policy.
func (s *Store) DeletePolicy(ctx context.Context, project string) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	return check(s.run(ctx, s.scripts.policy, s.shards[0], project, ""))
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
