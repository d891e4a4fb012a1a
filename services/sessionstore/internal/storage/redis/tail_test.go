package redis_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// longWait is how long watchers wait in these tests: no test takes as long
// unless a wake-up is missed.
const longWait = 20 * time.Second

func sessionOn(t *testing.T, s *redis.Store, shard int) string {
	t.Helper()
	id, _ := create(t, s, newSession(shard%storagetest.Shards, "", time.Hour), "")
	return id
}

// watch waits for what follows the end of a session's log.
func watch(ctx context.Context, s *redis.Store, id string) (storage.EventPage, error) {
	end, err := s.ListEvents(ctx, storage.EventQuery{SessionID: id, Tail: 1})
	if err != nil {
		return end, err
	}
	return s.ListEvents(ctx, storage.EventQuery{SessionID: id, After: end.Next, Limit: 10, Wait: longWait})
}

var callsOf = regexp.MustCompile(`cmdstat_([a-z|]+):calls=(\d+)`)

// commands counts what a server was asked since the last count.
func commands(t *testing.T, client *goredis.Client) (sum int, all string) {
	t.Helper()
	info, err := client.Info(context.Background(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range callsOf.FindAllStringSubmatch(info, -1) {
		n, _ := strconv.Atoi(m[2])
		sum += n
		all += m[0] + " "
	}
	if err := client.ConfigResetStat(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
	return sum, all
}

// watchers are many who wait on one store.
func watchers(t *testing.T, s *redis.Store, client *goredis.Client, n int) (ids []string, results func() []error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		id := sessionOn(t, s, i)
		ids = append(ids, id)
		wg.Go(func() {
			page, err := watch(ctx, s, id)
			if err == nil && len(page.Events) == 0 {
				err = errors.New("nothing")
			}
			errs[i] = err
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	quiet(t, client)
	return ids, func() []error { wg.Wait(); return errs }
}

// quiet waits until a server is asked nothing more but whether a feed goes on.
func quiet(t *testing.T, client *goredis.Client) {
	t.Helper()
	commands(t, client)
	storagetest.Until(t, "the watchers wait", func() bool {
		time.Sleep(100 * time.Millisecond)
		n, _ := commands(t, client)
		return n <= 4
	})
}

// TestIdleWatchersCostNothing: while nothing happens the server is asked as much
// for 300 watchers as for one, and everybody is woken all the same.
func TestIdleWatchersCostNothing(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL())
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	ids, results := watchers(t, s, client, 300)
	const looks = 3 * time.Second
	time.Sleep(looks)
	if n, all := commands(t, client); n > 20 {
		t.Errorf("%d commands in %v with nothing to tell: %s", n, looks, all)
	}
	for _, id := range ids {
		if _, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(results()...); err != nil {
		t.Error(err)
	}
}

var blockedOf = regexp.MustCompile(`(?m)^id=(\d+) .* cmd=xread `)

// followerOf is the id of the connection that waits for the feeds. To end others
// would be an outage.
func followerOf(t *testing.T, client *goredis.Client) string {
	t.Helper()
	list, err := client.ClientList(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	found := blockedOf.FindStringSubmatch(list)
	if found == nil {
		t.Fatalf("nobody follows the feeds:\n%s", list)
	}
	return found[1]
}

// TestMissedEntriesWakeTheirShard: what the follower of the feeds cannot have
// seen reaches who waits for it.
func TestMissedEntriesWakeTheirShard(t *testing.T) {
	ctx := context.Background()
	raw, err := proto.Marshal(&sessionv1.Event{Id: "e", Type: "input:text"})
	if err != nil {
		t.Fatal(err)
	}
	for name, miss := range map[string]func(p goredis.Pipeliner, follower, feed, id, other string){
		"trimmed before it was read": func(p goredis.Pipeliner, _, feed, id, other string) {
			p.XAdd(ctx, &goredis.XAddArgs{Stream: feed, Values: []any{"s", id, "e", raw}})
			p.XAdd(ctx, &goredis.XAddArgs{Stream: feed, Values: []any{"s", other, "e", raw}})
			p.XTrimMaxLen(ctx, feed, 1)
		},
		"appended and gone while the connection was lost": func(p goredis.Pipeliner, follower, feed, id, _ string) {
			p.ClientKillByFilter(ctx, "ID", follower)
			p.XAdd(ctx, &goredis.XAddArgs{Stream: feed, Values: []any{"s", id, "e", raw}})
			p.XTrimMaxLen(ctx, feed, 0)
		},
		"in a feed that begins again": func(p goredis.Pipeliner, follower, feed, id, _ string) {
			p.ClientKillByFilter(ctx, "ID", follower)
			p.Del(ctx, feed)
			p.XAdd(ctx, &goredis.XAddArgs{Stream: feed, ID: "1-1", Values: []any{"s", id, "e", raw}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			s := open(t, server.URL())
			client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
			defer client.Close()
			other := sessionOn(t, s, 0)
			ids, results := watchers(t, s, client, 1)
			const shard = "stoker:{s0}:"
			follower := followerOf(t, client)
			began := time.Now()
			if _, err := client.TxPipelined(ctx, func(p goredis.Pipeliner) error {
				p.XAdd(ctx, &goredis.XAddArgs{Stream: shard + "events:" + ids[0], Values: []any{"i", "e", "e", raw}})
				miss(p, follower, shard+"feed", ids[0], other)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(results()...); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > longWait/2 {
				t.Errorf("woken after %v", took)
			}
			// The follower goes on from there.
			ids, results = watchers(t, s, client, 1)
			if _, err := s.Append(ctx, ids[0], []*sessionv1.Event{{Id: "f", Type: "input:text"}}); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(results()...); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestWatchersHearOfAnOutage: who waits is told that Redis has gone, and not only
// when the wait is over.
func TestWatchersHearOfAnOutage(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL(), func(o *redis.Options) { o.Timeout = 200 * time.Millisecond })
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	_, results := watchers(t, s, client, 20)
	began := time.Now()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for i, err := range results() {
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("watcher %d: %v", i, err)
		}
	}
	if took := time.Since(began); took > longWait/2 {
		t.Error(fmt.Sprint("told after ", took))
	}
}
