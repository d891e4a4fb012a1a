package redis

import (
	"context"
	"fmt"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// orphan names the index entries of a session that may not exist.
type orphan struct {
	id, byUser, byProject string
}

// dropOrphans removes the entries of a shard's indexes that have no session: their
// keys expired by themselves before a sweep came to them. It returns how many it
// removed. In a cluster it does nothing while a slot is open, since the session may
// be on the other node.
func (s *Store) dropOrphans(ctx context.Context, sh *shard) (int, error) {
	servers, err := s.conn.read.servers(ctx)
	if err != nil {
		return 0, failure(err)
	}
	if _, moving, err := s.layout(ctx, servers); err != nil || moving {
		return 0, err
	}
	total := 0
	for _, index := range []keyKind{keyByProject, keyByUser, keyDeadlines, keyWarnings, keyRetired} {
		after := ""
		for {
			if err := s.usable(ctx); err != nil {
				return total, err
			}
			members, last, err := s.indexPage(ctx, sh, index, after)
			if err != nil {
				return total, err
			}
			n, err := s.dropThose(ctx, sh, index, members)
			total += n
			if err != nil {
				return total, err
			}
			if last == "" {
				break
			}
			after = last
		}
	}
	return total, nil
}

// indexPage reads a page of an index, and the place of the next, empty for the last.
// Indexes with scores are read by a cursor of their own: an entry that is there
// all the time is read.
func (s *Store) indexPage(ctx context.Context, sh *shard, index keyKind, after string) (members []string, next string, err error) {
	if index == keyByProject || index == keyByUser {
		members, err = s.lexRange(ctx, sh.own(index), "", after, scanPage)
		if len(members) == scanPage {
			next = members[len(members)-1]
		}
		return members, next, err
	}
	if after == "" {
		after = "0"
	}
	cmd := goredis.NewScanCmd(ctx, nil, "zscan", sh.own(index), after, "count", scanPage)
	if err := failure(s.conn.read.do(ctx, cmd)); err != nil {
		return nil, "", err
	}
	pairs, cursor := cmd.Val()
	for i := 0; i < len(pairs); i += 2 {
		members = append(members, pairs[i])
	}
	if cursor != 0 {
		next = fmt.Sprint(cursor)
	}
	return members, next, nil
}

// dropThose removes the members of an index that have no session, from all indexes.
func (s *Store) dropThose(ctx context.Context, sh *shard, index keyKind, members []string) (int, error) {
	records := make([]*goredis.IntCmd, len(members))
	for i, m := range members {
		records[i] = goredis.NewIntCmd(ctx, "exists", sh.session(storage.LastPart(m)))
	}
	if err := s.conn.read.pipeline(ctx, asCmders(records)...); err != nil {
		return 0, err
	}
	var calls []invocation
	for i, m := range members {
		if err := failure(records[i].Err()); err != nil {
			return 0, err
		}
		if records[i].Val() == 0 {
			o := newOrphan(index, m)
			calls = append(calls, s.scripts.forget.on(sh, o.id, o.id, o.byUser, o.byProject))
		}
	}
	replies, errs := s.runAll(ctx, "forget", calls)
	total := 0
	for i, r := range replies {
		if errs[i] != nil {
			return total, errs[i]
		}
		total += int(r.num(0))
	}
	return total, nil
}

// newOrphan names the entries that a session has in the other indexes, as far as
// its member of one of them tells.
func newOrphan(index keyKind, member string) orphan {
	o := orphan{id: storage.LastPart(member)}
	parts := strings.SplitN(member, "\x00", 3)
	if len(parts) != 3 {
		return o
	}
	o.byProject, o.byUser = member, parts[1]+"\x00"+parts[0]+"\x00"+parts[2]
	if index == keyByUser {
		o.byUser, o.byProject = member, o.byUser
	}
	return o
}
