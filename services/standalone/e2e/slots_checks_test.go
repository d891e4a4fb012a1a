//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// rawSession is the record of a session as it is in Redis.
type rawSession struct {
	state  string
	expire int64
	// byUser and byProject are the members that the indexes must have of it while
	// it lives; byUser is empty for an anonymous session.
	byUser, byProject string
}

// rawShard is a shard as it is in Redis, key by key.
type rawShard struct {
	shard    int
	sessions map[string]rawSession
	// scores are the sorted sets deadlines, warnings and retired, by session.
	scores map[string]map[string]float64
	// members are the indexes by-user and by-project.
	members map[string][]string
	// parts are the other keys of single sessions, as "events" and "ids".
	parts map[string][]string
}

// shardKey is a key of a shard that names its slot.
func shardKey(shard int) string { return fmt.Sprintf("stoker:{s%d}:feed", shard) }

func shardKeys(shards int) []string {
	keys := make([]string, shards)
	for s := range shards {
		keys[s] = shardKey(s)
	}
	return keys
}

// readShard reads a shard from the master that owns its slot.
func readShard(t *testing.T, cluster *redistest.Cluster, shard int) rawShard {
	t.Helper()
	slot := cluster.SlotOf(t, shardKey(shard))
	owner := cluster.MasterOf(t, slot)
	client := goredis.NewClient(&goredis.Options{Addr: owner})
	defer client.Close()
	return readShardKeys(t, client, shard, cluster.KeysInSlot(t, owner, slot))
}

// readServerShard reads a shard from a server that is no cluster.
func readServerShard(t *testing.T, client *goredis.Client, shard int) rawShard {
	t.Helper()
	var keys []string
	for it := client.Scan(t.Context(), 0, fmt.Sprintf("stoker:{s%d}:*", shard), 1000).Iterator(); ; keys = append(keys, it.Val()) {
		if !it.Next(t.Context()) {
			must(t, it.Err())
			break
		}
	}
	slices.Sort(keys)
	return readShardKeys(t, client, shard, slices.Compact(keys))
}

// readShardKeys reads a shard, whose keys these are, from a server.
func readShardKeys(t *testing.T, client *goredis.Client, shard int, keys []string) rawShard {
	t.Helper()
	r := rawShard{
		shard: shard, sessions: map[string]rawSession{}, scores: map[string]map[string]float64{},
		members: map[string][]string{}, parts: map[string][]string{},
	}
	prefix := fmt.Sprintf("stoker:{s%d}:", shard)
	pipe := client.Pipeline()
	records := map[string]*goredis.SliceCmd{}
	for _, k := range keys {
		kind, id, _ := strings.Cut(strings.TrimPrefix(k, prefix), ":")
		switch kind {
		case "session":
			records[id] = pipe.HMGet(t.Context(), k, "st", "exp", "um", "pm")
		case "events", "ids":
			r.parts[kind] = append(r.parts[kind], id)
		}
	}
	scores, members := map[string]*goredis.ZSliceCmd{}, map[string]*goredis.StringSliceCmd{}
	for _, name := range []string{"deadlines", "warnings", "retired"} {
		scores[name] = pipe.ZRangeWithScores(t.Context(), prefix+name, 0, -1)
	}
	for _, name := range []string{"by-user", "by-project"} {
		members[name] = pipe.ZRange(t.Context(), prefix+name, 0, -1)
	}
	_, err := pipe.Exec(t.Context())
	must(t, err)
	for id, cmd := range records {
		v := cmd.Val()
		s := rawSession{}
		s.state, _ = v[0].(string)
		expire, _ := v[1].(string)
		s.expire, _ = strconv.ParseInt(expire, 10, 64)
		s.byUser, _ = v[2].(string)
		s.byProject, _ = v[3].(string)
		r.sessions[id] = s
	}
	for name, cmd := range scores {
		r.scores[name] = map[string]float64{}
		for _, z := range cmd.Val() {
			r.scores[name][z.Member.(string)] = z.Score
		}
	}
	for name, cmd := range members {
		r.members[name] = cmd.Val()
	}
	return r
}

// unswept counts the sessions whose record has them live though they
// were due some time ago.
func (r rawShard) unswept(ago time.Duration) (n int) {
	limit := time.Now().Add(-ago).UnixMilli()
	for _, s := range r.sessions {
		if s.state == "0" && s.expire < limit {
			n++
		}
	}
	return n
}

// faults lists what is inconsistent in a shard at rest: each session is in every
// index it belongs to and in no other, and each entry has a record behind it.
func (r rawShard) faults() (wrong []string) {
	fault := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("shard %d: ", r.shard)+fmt.Sprintf(format, args...))
	}
	listed := map[string]map[string]bool{}
	for index, members := range r.members {
		listed[index] = map[string]bool{}
		for _, m := range members {
			listed[index][m] = true
			id := m[strings.LastIndexByte(m, 0)+1:]
			if _, ok := r.sessions[id]; !ok {
				fault("%s has %s, which has no record", index, id)
			}
		}
	}
	for index, entries := range r.scores {
		for id := range entries {
			if _, ok := r.sessions[id]; !ok {
				fault("%s has %s, which has no record", index, id)
			}
		}
	}
	for kind, ids := range r.parts {
		for _, id := range ids {
			if _, ok := r.sessions[id]; !ok {
				fault("there are %s of %s, which has no record", kind, id)
			}
		}
	}
	for id, s := range r.sessions {
		live := s.state == "0"
		if s.state == "" || s.byProject == "" {
			fault("the record of %s has no state or no project", id)
			continue
		}
		deadline, hasDeadline := r.scores["deadlines"][id]
		_, hasWarning := r.scores["warnings"][id]
		_, isRetired := r.scores["retired"][id]
		switch {
		case live && !hasDeadline:
			fault("the live session %s is not in deadlines", id)
		case live && deadline > float64(s.expire):
			fault("the live session %s is in deadlines %.0f ms after its deadline", id, deadline-float64(s.expire))
		case !live && hasDeadline:
			fault("the session %s, which is over, is in deadlines", id)
		}
		if live == isRetired {
			fault("session %s: live is %v, in retired %v", id, live, isRetired)
		}
		if !live && hasWarning {
			fault("the session %s, which is over, is in warnings", id)
		}
		if live != listed["by-project"][s.byProject] {
			fault("session %s: live is %v, in by-project %v", id, live, !live)
		}
		if s.byUser != "" && live != listed["by-user"][s.byUser] {
			fault("session %s: live is %v, in by-user %v", id, live, !live)
		}
	}
	return wrong
}

// slotSettle is how soon after its deadline a session must have expired once the
// slots are at rest.
const slotSettle = 10 * time.Second

// checkAtRest holds everything to what was acknowledged, once no slot moves and
// no client calls: keys, indexes, responses, logs and the feed.
func (l *slotLoad) checkAtRest(t *testing.T, cluster *redistest.Cluster, shards int) {
	t.Helper()
	for _, wrong := range cluster.Misplaced(t, shardKeys(shards)...) {
		t.Error(wrong)
	}
	l.checkShards(t, shards, func(shard int) rawShard { return readShard(t, cluster, shard) })
}

// checkShards is checkAtRest for shards that read reads.
func (l *slotLoad) checkShards(t *testing.T, shards int, read func(shard int) rawShard) {
	t.Helper()
	l.report(t, "under load")
	raw := make([]rawShard, shards)
	deadline := time.Now().Add(slotSettle)
	for shard := range raw {
		for {
			raw[shard] = read(shard)
			n := raw[shard].unswept(time.Second)
			if n == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("shard %d: %d sessions have not expired", shard, n)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, wrong := range raw[shard].faults() {
			l.fault("%s", wrong)
		}
	}
	l.report(t, "in Redis")
	l.feed.awaitQuiet(t)
	l.checkSessions(t, raw)
	l.report(t, "one by one")
	l.checkLists(t)
	l.report(t, "in lists")
}

// checkSessions holds each session's record and log to what was acknowledged of
// it, and to each other.
func (l *slotLoad) checkSessions(t *testing.T, raw []rawShard) {
	t.Helper()
	if lost := l.lost(t, l.store); lost > 0 {
		l.fault("%d acknowledged writes are lost", lost)
	}
	for _, shard := range raw {
		for id, s := range shard.sessions {
			l.checkLog(t, id, s)
		}
	}
	l.mu.Lock()
	known := maps.Clone(l.told)
	l.mu.Unlock()
	for id, want := range known {
		s, ok := raw[shardOf(id)].sessions[id]
		switch {
		case !ok && !want.deleting:
			l.fault("%s has no record", id)
		case !ok:
		case want.deleted:
			l.fault("%s was deleted, and has a record", id)
		case want.lives() && s.state != "0":
			l.fault("%s lives, and its record has state %s", id, s.state)
		case time.UnixMilli(s.expire).Before(want.deadline.Truncate(time.Millisecond)):
			l.fault("the deadline of %s is %v, earlier than the acknowledged %v", id, time.UnixMilli(s.expire), want.deadline)
		case want.user != "" && s.byUser == "":
			l.fault("the record of %s has no user", id)
		}
	}
}

// checkLog holds a session's log to its record: a change that was applied by half
// is in one and not in the other. The feed must have all that the log has.
func (l *slotLoad) checkLog(t *testing.T, id string, s rawSession) {
	t.Helper()
	types, extensions := map[string]int{}, int32(0)
	got, err := l.store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id})
	if err != nil {
		l.fault("%s has a record, and GetSession returned %v", id, err)
		return
	}
	extensions = got.GetExtensionCount()
	l.feed.mu.Lock()
	fed := maps.Clone(l.feed.events[id])
	l.feed.mu.Unlock()
	for _, e := range allEvents(t, l.store, id) {
		types[e.GetType()]++
		if fed[feedName(e)] == 0 {
			l.fault("the log of %s has %s %s, and the feed has not", id, e.GetType(), e.GetId())
		}
		if at := e.GetTime().AsTime(); e.GetType() == "session:expired" && at.UnixMilli() < s.expire {
			l.fault("%s expired %v before its deadline", id, time.UnixMilli(s.expire).Sub(at))
		}
	}
	want := map[string]int{"session:created": 1, "session:ended": 0, "session:expired": 0, "session:extended": int(extensions)}
	switch s.state {
	case "1":
		want["session:ended"] = 1
	case "2":
		want["session:expired"] = 1
	}
	for kind, n := range want {
		if types[kind] != n {
			l.fault("%s in state %s has %d %s in its log, want %d", id, s.state, types[kind], kind, n)
		}
	}
}

// checkLists reads every list once: each live session is in those of its user and
// of its project, and counts as its user's.
func (l *slotLoad) checkLists(t *testing.T) {
	t.Helper()
	l.startPhase()
	users, projects := map[[2]string]bool{}, map[string]bool{}
	for _, s := range l.livingIn(func(*told) bool { return true }) {
		users[[2]string{s.user, s.project}] = s.user != ""
		projects[s.project] = true
	}
	for of, named := range users {
		if named {
			l.list(t.Context(), of[0], of[1])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(projects)) {
		l.list(t.Context(), "", p)
		l.activeUsers(t.Context(), p)
	}
	counts := l.startPhase()
	for _, op := range []string{"ListSessions by user", "ListSessions by project", "ListActiveUsers"} {
		if c := counts[op]; c == nil || c.unavailable > 0 || c.ok < len(projects) {
			t.Errorf("at rest, %s: %+v, want %d OK or more and none UNAVAILABLE", op, c, len(projects))
		}
	}
}

// awaitRest waits until a store has replayed its journal and serves every
// shard. Nothing may be a dead letter.
func (l *slotLoad) awaitRest(t *testing.T, admin sessionv1.AdminServiceClient, ids []string) {
	t.Helper()
	eventually(t, 30*time.Second, "the journal is replayed", func() bool {
		st, err := admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
		must(t, err)
		return st.GetJournalDepth() == 0
	})
	st, err := admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
	must(t, err)
	if st.GetDeadLetters() > 0 {
		list, err := admin.ListDeadLetters(t.Context(), &sessionv1.ListDeadLettersRequest{PageSize: 3})
		t.Errorf("%d dead letters, among them %v %v", st.GetDeadLetters(), list.GetDeadLetters(), err)
	}
	byShard := map[int]string{}
	for _, id := range ids {
		byShard[shardOf(id)] = id
	}
	for _, store := range []sessionv1.StorageServiceClient{l.store, l.peer} {
		for _, id := range byShard {
			eventually(t, 10*time.Second, "every shard is served", func() bool {
				var h metadata.MD
				_, err := store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id}, grpc.Header(&h))
				_, err2 := store.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Type: "input:probe"}}})
				for _, err := range []error{err, err2} {
					if c := status.Code(err); c != codes.OK && c != codes.Unavailable {
						t.Errorf("of the live session %s: %v", id, err)
						return true
					}
				}
				return err == nil && err2 == nil && len(h.Get("stoker-served-by")) == 0
			})
		}
	}
}

// awaitShortLived waits until the last of the sessions that expire soon can have
// no more extension.
func (l *slotLoad) awaitShortLived(t *testing.T) {
	t.Helper()
	last, n := time.Time{}, 0
	l.mu.Lock()
	for _, s := range l.told {
		if s.limit.Before(time.Now().Add(faultTTL / 2)) {
			n++
			if s.limit.After(last) {
				last = s.limit
			}
		}
	}
	l.mu.Unlock()
	if n < 50 {
		t.Errorf("%d sessions fell due, want 50 or more", n)
	}
	time.Sleep(time.Until(last))
}
