package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

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
			if len(parts) != 3 || parts[1] == "" || deadlines.Val()[i] <= now || s.hasEnded(parts[2]) {
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
