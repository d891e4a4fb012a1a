package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	goredis "github.com/redis/go-redis/v9"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Verdicts of the scripts.
const (
	none       = -1
	over       = -2
	superseded = -3
	// again: the script needs a key that was not declared, and has changed nothing.
	again = -4
	// uncertain: there is an index entry and no session, and that proves nothing.
	uncertain = -5
)

// undeclaredMost bounds how often a script is called again with a key that it
// asked for. Once is enough, unless what names the key changes meanwhile.
const undeclaredMost = 3

// errUndeclared is the error of a call whose keys changed at every attempt.
var errUndeclared = fmt.Errorf("%w: the keys of the call change too fast", storage.ErrUnavailable)

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
	if s.hasEnded(in.GetId()) {
		// An attempt before has created it, and it has ended since.
		out, err := s.Get(ctx, in.GetId())
		if errors.Is(err, storage.ErrNotFound) {
			return in, false, nil
		}
		return out, false, err
	}
	for range undeclaredMost {
		r, err := s.create(ctx, sh, in, requestKey, present)
		if err != nil {
			return nil, false, err
		}
		existed := r.num(0) == 1
		stored, err := s.answered(r, 2)
		if errors.Is(err, storage.ErrNotFound) && !existed {
			return in, false, nil // an attempt before has made it, and somebody has deleted it since
		}
		x, ended := s.endings.get(stored.GetId())
		if !ended || !existed {
			return stored, existed, err
		}
		if x.kind != endingDeleted {
			if stored.GetEndTime() == nil {
				x.apply(stored)
			}
			return stored, true, err
		}
		// The session that the request key stands for was deleted: since the script ran,
		// or it is back with older data. Either way the key is free.
		if err := s.remove(ctx, sh, stored.GetId(), present); err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, false, err
		}
	}
	return nil, false, fmt.Errorf("%w: the session of the request key is deleted again and again", storage.ErrUnavailable)
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
	sc, prior := s.scripts.create, ""
	for range undeclaredMost {
		call := sc.declare(sh, in.GetId(), sc.required, 3+len(fields))
		if request != "" {
			call = call.and(sh.key(keyRequest, request))
		}
		if prior != "" {
			call = call.and(sh.key(keyPrior, prior))
		}
		r, err := s.run(ctx, call.with(in.GetId(), prior, at.arg()).with(fields...))
		if err != nil || r.num(0) != again {
			return r, err
		}
		prior = r.text(1)
	}
	return nil, errUndeclared
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
	out, err := s.parsed(cmd.Val(), s.now())
	if err == nil {
		s.sawEnd(out)
	}
	return out, s.confirm(ctx, sh, err)
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
	now, misses := s.now(), absences{s: s}
	for i, cmd := range cmds {
		if cmd == nil {
			continue
		}
		if out[i].Err = failure(cmd.Err()); out[i].Err == nil {
			if out[i].Session, out[i].Err = s.parsed(cmd.Val(), now); out[i].Err == nil {
				s.sawEnd(out[i].Session)
			}
			out[i].Err = misses.confirm(ctx, s.shardOf(ids[i]), out[i].Err)
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
	out, err := s.answered(r, 1)
	if err == nil {
		s.sawEnd(out)
	}
	return out, err
}

func (s *Store) end(ctx context.Context, sh *shard, id, reason string, at asOf) (reply, error) {
	r, err := s.run(ctx, s.ending(sh, id, reason, at, "1"))
	return r, s.confirm(ctx, sh, check(r, err))
}

func (s *Store) ending(sh *shard, id, reason string, at asOf, answer string) invocation {
	return s.scripts.end.on(sh, id, id, reason, at.arg(), answer)
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
	err := s.remove(ctx, sh, id, present)
	return s.confirm(ctx, sh, err)
}

// remove deletes a session; a second call declares the key of the request that
// created it, which only the record names.
func (s *Store) remove(ctx context.Context, sh *shard, id string, at asOf) error {
	sc, request := s.scripts.remove, ""
	for range undeclaredMost {
		call := sc.declare(sh, id, sc.required, 3)
		if request != "" {
			call = call.and(sh.key(keyRequest, request))
		}
		r, err := s.run(ctx, call.with(id, at.arg(), s.opts.Retention.Milliseconds()))
		if err != nil || r.num(0) != again {
			if err = check(r, err); err == nil {
				s.remember(id, endingDeleted, cmp.Or(at.ms, s.now()), "")
			}
			return err
		}
		request = r.text(1)
	}
	return errUndeclared
}

// RevokeUser ends all live sessions of a user in a project: it finds a bounded
// number of them in the index, and ends each by a script of its own.
func (s *Store) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	const batch = 200
	sh := s.shards[storage.UserShard(project, user, len(s.shards))]
	prefix := user + "\x00" + project + "\x00"
	total := 0
	var failed error
	for after := ""; ; {
		if err := s.usable(ctx); err != nil {
			return total, err
		}
		members, err := s.lexRange(ctx, sh.byUser(), prefix, after, batch)
		if err != nil || len(members) == 0 {
			return total, errors.Join(failed, err)
		}
		after = members[len(members)-1]
		var calls []invocation
		var ids []string
		for _, m := range members {
			if id := storage.LastPart(m); !slices.Contains(except, id) {
				calls, ids = append(calls, s.ending(sh, id, reason, present, "")), append(ids, id)
			}
		}
		replies, errs := s.runEach(ctx, "end", calls)
		for i, r := range replies {
			switch {
			case errs[i] != nil:
				failed = errs[i] // the others end all the same
			case r.num(0) == 1:
				total++
				s.remember(ids[i], endingEnded, s.now(), reason)
			}
		}
		if len(members) < batch {
			return total, failed
		}
	}
}
