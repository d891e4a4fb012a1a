package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// newSession describes a session that begins now and ends after base.
func newSession(shard int, user string, base time.Duration) *sessionv1.Session {
	p := lifetime.Resolve(&sessionv1.TTLPolicy{BaseTtl: durationpb.New(base)}, lifetime.DefaultPolicy())
	now := time.Now().UnixMilli()
	return &sessionv1.Session{
		Id: sessionid.New(shard), User: user, Project: "acme", Revision: 1, TtlPolicy: p,
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
		ExpireTime: lifetime.Time(lifetime.Deadline(now, p)),
	}
}

// createdThen stores a session with the times that it carries.
func createdThen(t interface {
	Context() context.Context
	Fatal(args ...any)
}, s storage.Store, in *sessionv1.Session,
) {
	w := storage.Write{SessionID: in.GetId(), At: in.GetCreateTime().AsTime(), Create: &storage.CreateWrite{Session: in}}
	if err := s.Replay(t.Context(), w); err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, s storage.Store, in *sessionv1.Session, request string) (string, bool) {
	t.Helper()
	out, existed, err := s.Create(t.Context(), in, request)
	if err != nil {
		t.Fatal(err)
	}
	return out.GetId(), existed
}

func raw(t testing.TB, server *redistest.Server) *goredis.Client {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// until waits for something that the clock brings about.
// TestGroupBeginsAtTheOldestEntry: a new group is given all that was appended
// before it, even what is ahead of the clock, as after one was set back.
func TestGroupBeginsAtTheOldestEntry(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	old := sessionid.New(3)
	for _, id := range []string{"1-1", strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10) + "-5"} {
		args := &goredis.XAddArgs{Stream: "stoker:{s3}:feed", ID: id, Values: []string{"s", old, "L", storage.TypeEnded, "n", "1"}}
		if err := client.XAdd(t.Context(), args).Err(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.OpenFeed(t.Context(), "g", "c")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	id, _ := create(t, s, newSession(3, "ann", time.Hour), "")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, want := range []string{old, old, id} {
		var b storage.FeedBatch
		for len(b.Entries) == 0 {
			if b, err = r.Next(ctx, 1); err != nil {
				t.Fatal(err)
			}
		}
		if got := b.Entries[0]; got.GetSessionId() != want {
			t.Errorf("got %v, want an entry of %s", got, want)
		}
	}
}

// TestRequestIsKnownAsLongAsItsSession: a request key outlasts its session, however
// often that is extended, and goes with it when it is purged.
func TestRequestIsKnownAsLongAsItsSession(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL(), func(o *redis.Options) { o.Retention = time.Millisecond }), raw(t, server)
	in := newSession(2, "ann", time.Minute)
	id, _ := create(t, s, in, "req")
	const key = "stoker:{s2}:request:acme\x00ann\x00req"
	for range 4 {
		res, err := s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
		if err != nil || res[0].Err != nil {
			t.Fatal(err, res[0].Err)
		}
		session := client.PTTL(t.Context(), "stoker:{s2}:session:"+id).Val()
		request := client.PTTL(t.Context(), key).Val()
		if session < time.Minute || request < session {
			t.Errorf("the request expires in %v, the session in %v", request, session)
		}
	}
	if again, existed := create(t, s, newSession(2, "ann", time.Minute), "req"); again != id || !existed {
		t.Errorf("the same request made %s (existed: %v)", again, existed)
	}
	if _, err := s.End(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond) // Redis tells the time of its retention
	if r, err := s.Sweep(t.Context()); err != nil || r.Purged != 1 {
		t.Fatalf("purging: %+v, %v", r, err)
	}
	if client.Exists(t.Context(), key).Val() != 0 {
		t.Error("the request key has stayed behind")
	}
}

// TestRequestsOfDifferentUsersAreDifferent whatever their names contain.
func TestRequestsOfDifferentUsersAreDifferent(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	first, _ := create(t, s, newSession(1, "a/b", time.Hour), "c")
	second, existed := create(t, s, newSession(1, "a", time.Hour), "b/c")
	if existed || first == second {
		t.Error("one user was given the session of another")
	}
}

// TestNothingIsLeftOfPurgedSessions: however a session ends, no key and no
// index entry stays behind.
func TestNothingIsLeftOfPurgedSessions(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL(), func(o *redis.Options) { o.Retention = 50 * time.Millisecond }), raw(t, server)
	for i := range 200 {
		base := time.Hour
		if i%4 == 0 {
			base = 100 * time.Millisecond
		}
		id, _ := create(t, s, newSession(i%storagetest.Shards, fmt.Sprint("user", i%7), base), fmt.Sprint("r", i))
		var err error
		switch i % 4 {
		case 0: // runs out
		case 1:
			_, err = s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
			if err == nil {
				err = s.Delete(t.Context(), id)
			}
		case 2:
			_, err = s.End(t.Context(), id, "done")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 7 {
		user := fmt.Sprint("user", i)
		for shard := range storagetest.Shards {
			// These were spread over the shards by hand; a user has one.
			if storage.UserShard("acme", user, storagetest.Shards) == shard {
				if _, err := s.RevokeUser(t.Context(), "acme", user, nil, "over"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	page, err := s.List(t.Context(), storage.ListQuery{Project: "acme", Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range page.Sessions {
		if _, err := s.End(t.Context(), x.GetId(), ""); err != nil {
			t.Fatal(err)
		}
	}
	storagetest.Until(t, "only what is there once", func() bool {
		if _, err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return perSession(t, client) == 0
	})
}

// TestSweepForgetsSessionsThatVanished: where no sweeper ran until the safety
// net took a session's keys, its index entries go as well, and no other's.
func TestSweepForgetsSessionsThatVanished(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	alive, _ := create(t, s, newSession(4, "ann", time.Hour), "")
	for i := range 20 {
		id, _ := create(t, s, newSession(4, fmt.Sprint("user", i%3), time.Millisecond), "")
		for _, kind := range []string{"session:", "events:", "ids:"} {
			if err := client.Del(t.Context(), "stoker:{s4}:"+kind+id).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(5 * time.Millisecond)
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, index := range []string{"deadlines", "warnings", "by-user", "by-project"} {
		if n := client.ZCard(t.Context(), "stoker:{s4}:"+index).Val(); n != 1 {
			t.Errorf("%s: %d entries, want that of the session that is there", index, n)
		}
	}
	if _, err := s.Get(t.Context(), alive); err != nil {
		t.Error(err)
	}
}

// TestGroupSurvivesTheLossOfItsData: when a server comes back empty, an open
// reader goes on, and its group holds the sweeper again.
func TestGroupSurvivesTheLossOfItsData(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL())
	r, err := s.OpenFeed(t.Context(), storage.ActivityGroup, "c")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := errors.Join(server.Kill(), server.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	storagetest.Until(t, "the group on every shard", func() bool {
		groups, err := s.Groups(ctx)
		return err == nil && len(groups) == storagetest.Shards && groups[0].Consumer == "c"
	})
	id, _ := create(t, s, newSession(5, "ann", time.Hour), "")
	for {
		b, err := r.Next(ctx, 10)
		switch {
		case errors.Is(err, storage.ErrUnavailable):
			continue
		case err != nil:
			t.Fatal(err)
		case len(b.Entries) == 0:
			continue
		}
		e := b.Entries[0]
		if e.GetSessionId() != id {
			t.Fatalf("got %v", e)
		}
		if err := r.Ack(ctx, []storage.FeedAck{{Shard: int(e.GetShard()), Cursor: e.GetCursor()}}); err != nil {
			t.Fatal(err)
		}
		break
	}
	groups, err := s.Groups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g.Pending != 0 {
			t.Errorf("not acknowledged: %+v", g)
		}
	}
}

// TestShardsOfADeadConsumerAreTaken once its leases have run out.
func TestShardsOfADeadConsumerAreTaken(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	const ttl = 600 * time.Millisecond // as open says
	client.ZAdd(t.Context(), "stoker:{s0}:consumers:g", goredis.Z{Score: float64(time.Now().UnixMilli()), Member: "dead"})
	for n := range storagetest.Shards / 2 {
		if err := client.Set(t.Context(), fmt.Sprintf("stoker:{s%d}:lease:g", n), "dead nonce", ttl).Err(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.OpenFeed(t.Context(), "g", "alive")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	had := -1
	for began := time.Now(); ; {
		b, err := r.Next(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		if !b.Changed {
			continue
		}
		if had < 0 && len(b.Shards) != storagetest.Shards/2 {
			t.Errorf("begins with %v, want what the other does not hold", b.Shards)
		}
		if had = len(b.Shards); had == storagetest.Shards {
			if took := time.Since(began); took > 5*ttl {
				t.Errorf("took over after %s", took)
			}
			return
		}
	}
}

// TestFrozenServerHoldsNobodyUp: callers are answered within the timeout or
// when they leave, and served again as soon as the server goes on.
func TestFrozenServerHoldsNobodyUp(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL(), func(o *redis.Options) { o.Timeout = 300 * time.Millisecond })
	id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Resume() }()
	began := time.Now()
	if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("get took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	began = time.Now()
	if _, err := s.End(ctx, id, ""); !errors.Is(err, context.Canceled) && !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("end: %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a caller that left was kept for %s", took)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "an answer", func() bool {
		_, err := s.Get(t.Context(), id)
		return err == nil
	})
}

// TestFrozenServerDoesNotHoldUpClose: a shutdown is as short as ever, though
// the store was waiting for news.
func TestFrozenServerDoesNotHoldUpClose(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL(), func(o *redis.Options) { o.Timeout = 300 * time.Millisecond })
	client := raw(t, server)
	storagetest.Until(t, "the store waits for news", func() bool {
		return strings.Contains(client.Info(t.Context(), "clients").Val(), "blocked_clients:1")
	})
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("closing took %s", took)
	}
}

// TestLostDataIsNoticed by every replica, once for each loss, and not where a
// server comes back with its data.
func TestLostDataIsNoticed(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	a, b, client := open(t, server.URL()), open(t, server.URL()), raw(t, server)
	losses := func(s *redis.Store) int64 {
		t.Helper()
		storagetest.Until(t, "a sweep works", func() bool {
			_, err := s.Sweep(t.Context())
			return err == nil
		})
		st := s.Status(t.Context())
		if st.LastLoss.IsZero() != (st.Losses == 0) {
			t.Errorf("%+v", st)
		}
		return st.Losses
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if losses(a) != 0 || losses(b) != 0 {
		t.Error("a restart with all data is taken for a loss")
	}
	for n := int64(1); n <= 2; n++ {
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := losses(a); got != n {
				t.Errorf("after %d losses: %d", n, got)
			}
			if got := losses(b); got != n {
				t.Errorf("after %d losses, the other: %d", n, got)
			}
		}
	}
}
