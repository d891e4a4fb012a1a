package redis

import (
	"context"
	"errors"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
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
