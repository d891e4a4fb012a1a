package redis_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// wrongClock is the clock of a process, which is off by skew.
type wrongClock struct{ skew atomic.Int64 }

func (c *wrongClock) now() time.Time { return time.Now().Add(time.Duration(c.skew.Load())) }

func (c *wrongClock) by(d time.Duration) *wrongClock {
	c.skew.Store(int64(d))
	return c
}

// openAt opens a store whose process has a clock of its own.
func openAt(t *testing.T, url string, c *wrongClock, change ...func(*redis.Options)) *redis.Store {
	t.Helper()
	return open(t, url, append([]func(*redis.Options){func(o *redis.Options) { o.Clock = c.now }}, change...)...)
}

// clockWarning is the warning about the clock of a node, empty for the process's.
func clockWarning(t *testing.T, s *redis.Store, node string) string {
	t.Helper()
	for _, w := range s.Status(t.Context()).Warnings {
		if w.Code == "clock" && w.Node == node {
			return w.Message
		}
	}
	return ""
}

// serverTime is the time of the server.
func serverTime(t *testing.T, client *goredis.Client) time.Time {
	t.Helper()
	at, err := client.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func near(t *testing.T, what string, got, want time.Time) {
	t.Helper()
	if off := got.Sub(want); off.Abs() > 100*time.Millisecond {
		t.Errorf("%s: %v, off by %v", what, got, off)
	}
}

// TestClocksThatDiffer: stores whose processes are an hour ahead and an hour behind
// create, read, list and extend sessions as a store whose clock is right does.
func TestClocksThatDiffer(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	stores := map[string]*redis.Store{
		"right":  open(t, server.URL()),
		"ahead":  openAt(t, server.URL(), new(wrongClock).by(time.Hour)),
		"behind": openAt(t, server.URL(), new(wrongClock).by(-time.Hour)),
	}
	for name, off := range map[string]time.Duration{"right": 0, "ahead": time.Hour, "behind": -time.Hour} {
		s := stores[name]
		near(t, name+": now", s.Now(), serverTime(t, client))
		d := s.Status(t.Context()).ClockDifference
		if d == nil || (*d-off).Abs() > 100*time.Millisecond {
			t.Errorf("%s: clock difference %v, want %v", name, d, off)
		}
		want := map[string]string{"right": "", "ahead": "1h0m0s ahead of", "behind": "1h0m0s behind"}[name]
		if got := clockWarning(t, s, ""); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: warning %q, want %q in it", name, got, want)
		}
	}
	for maker, s := range stores {
		t.Run(maker, func(t *testing.T) {
			in := newSession(2, "user-"+maker, 3*time.Second)
			in.TtlPolicy = lifetime.Resolve(&sessionv1.TTLPolicy{ExtendBelow: seconds(2), Extension: seconds(1), ActiveWindow: seconds(1)}, in.GetTtlPolicy())
			before := serverTime(t, client)
			made, _, err := s.Create(t.Context(), in, "")
			if err != nil {
				t.Fatal(err)
			}
			near(t, "create_time", made.GetCreateTime().AsTime(), before)
			near(t, "expire_time", made.GetExpireTime().AsTime(), before.Add(3*time.Second))
			// Too early to extend, whoever asks.
			for reader, r := range stores {
				res, err := r.Extend(t.Context(), []storage.Activity{{SessionID: made.GetId(), Time: r.Now(), Kind: "input"}})
				if err != nil || res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_NOT_NEEDED {
					t.Errorf("%s extends at once: %v %v", reader, res, err)
				}
			}
			phases := func(want sessionv1.Session_Phase) {
				t.Helper()
				for reader, r := range stores {
					got, err := r.Get(t.Context(), made.GetId())
					if err != nil || got.GetPhase() != want {
						t.Errorf("%s reads %v %v, want %v", reader, got.GetPhase(), err, want)
					}
					users, err := r.ActiveUsers(t.Context(), storage.ListQuery{Limit: 100, Project: "acme"})
					listed := false
					for _, u := range users.Users {
						listed = listed || u.GetUser() == in.GetUser()
					}
					if live := want != sessionv1.Session_EXPIRED; err != nil || listed != live {
						t.Errorf("%s lists the user: %v %v, want %v", reader, listed, err, live)
					}
				}
			}
			phases(sessionv1.Session_ACTIVE)
			waitUntil(t, client, made.GetExpireTime().AsTime().Add(-500*time.Millisecond))
			phases(sessionv1.Session_EXPIRING)
			other := stores[map[string]string{"right": "ahead", "ahead": "behind", "behind": "right"}[maker]]
			res, err := other.Extend(t.Context(), []storage.Activity{{SessionID: made.GetId(), Time: other.Now(), Kind: "input"}})
			if err != nil || res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
				t.Fatalf("just before the deadline: %v %v", res, err)
			}
			deadline := res[0].Response.GetAfter().GetExpireTime().AsTime()
			if got := deadline.Sub(made.GetExpireTime().AsTime()); got != time.Second {
				t.Errorf("extended by %v", got)
			}
			waitUntil(t, client, deadline.Add(-100*time.Millisecond))
			phases(sessionv1.Session_EXPIRING)
			waitUntil(t, client, deadline.Add(50*time.Millisecond))
			phases(sessionv1.Session_EXPIRED)
			if _, err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, err := other.Get(t.Context(), made.GetId())
			if err != nil || got.GetEndTime() == nil {
				t.Fatalf("not swept: %v %v", got, err)
			}
			if at := got.GetEndTime().AsTime(); at.Before(deadline) || at.After(serverTime(t, client).Add(time.Second)) {
				t.Errorf("swept at %v, want after %v", at, deadline)
			}
		})
	}
}

// waitUntil waits until a time of the server.
func waitUntil(t *testing.T, client *goredis.Client, at time.Time) {
	t.Helper()
	for {
		left := at.Sub(serverTime(t, client))
		if left <= 0 {
			return
		}
		time.Sleep(left)
	}
}

// TestOwnClockJumps: the clock of the process jumps while the store is open, and is
// put right again.
func TestOwnClockJumps(t *testing.T) {
	server := redistest.Start(t)
	client, c := raw(t, server), new(wrongClock)
	s := openAt(t, server.URL(), c)
	id, _ := create(t, s, newSession(1, "ann", 30*time.Minute), "")
	if got := clockWarning(t, s, ""); got != "" {
		t.Fatalf("a warning where there is nothing to warn of: %s", got)
	}
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		c.by(by)
		near(t, "now", s.Now(), serverTime(t, client))
		if got, err := s.Get(t.Context(), id); err != nil || got.GetPhase() != sessionv1.Session_ACTIVE {
			t.Errorf("clock off by %v: %v %v", by, got, err)
		}
		made, _, err := s.Create(t.Context(), newSession(1, "bob", time.Minute), "")
		if err != nil {
			t.Fatal(err)
		}
		near(t, "create_time", made.GetCreateTime().AsTime(), serverTime(t, client))
		if d := s.Status(t.Context()).ClockDifference; d == nil || (*d-by).Abs() > 100*time.Millisecond {
			t.Errorf("clock difference %v, want %v", d, by)
		}
		eventually(t, "the warning is raised", func() bool { return strings.Contains(clockWarning(t, s, ""), "1h0m0s") })
	}
	c.by(900 * time.Millisecond)
	eventually(t, "the warning is cleared", func() bool { return clockWarning(t, s, "") == "" })
	c.by(1100 * time.Millisecond)
	eventually(t, "the warning is raised again", func() bool { return clockWarning(t, s, "") != "" })
}

// TestClockOfRedisJumps: as after a failover to a server whose clock is an hour off.
func TestClockOfRedisJumps(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	var log syncBuffer
	s := open(t, server.URL(), func(o *redis.Options) {
		o.SetClockOffsetByKey()
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	var off atomic.Int64
	if err := redis.ShiftTime(s, func(string) time.Duration { return time.Duration(off.Load()) }); err != nil {
		t.Fatal(err)
	}
	jump := func(by time.Duration) {
		t.Helper()
		if err := client.Set(t.Context(), redis.OffsetKey, by.Milliseconds(), 0).Err(); err != nil {
			t.Fatal(err)
		}
		off.Store(int64(by))
	}
	id, _ := create(t, s, newSession(1, "ann", 30*time.Minute), "")
	jump(time.Hour)
	eventually(t, "the clock follows", func() bool { return s.Now().Sub(serverTime(t, client)) > 59*time.Minute })
	near(t, "now", s.Now(), serverTime(t, client).Add(time.Hour))
	eventually(t, "a warning tells of the jump", func() bool { return strings.Contains(clockWarning(t, s, ""), "1h0m0s ahead of where it was") })
	if got := log.String(); strings.Count(got, "the clock of Redis has jumped") != 1 || !strings.Contains(got, "by=1h0m0") && !strings.Contains(got, "by=59m59.9") {
		t.Errorf("log: %s", got)
	}
	// That server judges: what is over by its clock is over.
	if got, err := s.Get(t.Context(), id); err != nil || got.GetPhase() != sessionv1.Session_EXPIRED {
		t.Errorf("past its deadline by the new clock: %v %v", got.GetPhase(), err)
	}
	made, _, err := s.Create(t.Context(), newSession(1, "bob", time.Minute), "")
	if err != nil {
		t.Fatal(err)
	}
	near(t, "create_time", made.GetCreateTime().AsTime(), serverTime(t, client).Add(time.Hour))
	jump(0)
	eventually(t, "the clock follows back", func() bool { return s.Now().Sub(serverTime(t, client)) < time.Minute })
	eventually(t, "a warning tells of the jump back", func() bool { return strings.Contains(clockWarning(t, s, ""), "1h0m0s behind where it was") })
}

// TestClocksOfACluster: the clock is that of the first shard's master, and a master
// whose clock differs from it is named.
func TestClocksOfACluster(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	c := new(wrongClock).by(-time.Hour)
	s := openAt(t, cluster.URL(), c)
	near(t, "now", s.Now(), time.Now())
	owner, err := redis.ClockServer(s)
	if err != nil {
		t.Fatal(err)
	}
	wrong := ""
	for _, n := range cluster.Nodes {
		if n.Addr != owner {
			wrong = n.Addr
		}
	}
	var off atomic.Int64
	off.Store(int64(time.Hour))
	err = redis.ShiftTime(s, func(addr string) time.Duration {
		if addr == wrong {
			return time.Duration(off.Load())
		}
		return 0
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the master is named", func() bool { return strings.Contains(clockWarning(t, s, wrong), "1h0m0s ahead of") })
	near(t, "now", s.Now(), time.Now())
	for _, w := range s.Status(t.Context()).Warnings {
		if w.Code == "clock" && w.Node != "" && w.Node != wrong {
			t.Errorf("a warning about %s: %s", w.Node, w.Message)
		}
	}
	off.Store(0)
	eventually(t, "the warning is cleared", func() bool { return clockWarning(t, s, wrong) == "" })
	if got := clockWarning(t, s, ""); !strings.Contains(got, "1h0m0s behind") {
		t.Errorf("the warning about the process: %q", got)
	}
}

// TestClockIsKeptInAnOutage: without Redis the clock goes on, and the breakers do not
// hear of the measurements that fail.
func TestClockIsKeptInAnOutage(t *testing.T) {
	server := redistest.Start(t)
	c := new(wrongClock).by(time.Hour)
	s := openAt(t, server.URL(), c)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	var tried atomic.Int64
	err := redis.ShiftTime(s, func(string) time.Duration {
		tried.Add(1)
		return 0
	})
	if err != nil {
		t.Fatal(err)
	}
	c.by(-time.Hour)
	eventually(t, "measurements fail", func() bool { return tried.Load() >= 6 }) // a breaker would open by 5
	near(t, "now", s.Now(), time.Now())
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The first call meets closed breakers.
	if _, err := s.List(t.Context(), storage.ListQuery{Limit: 1}); err != nil {
		t.Error(err)
	}
}

// TestClockIsMeasuredBeforeTheFirstCall: a store that was opened without Redis.
func TestClockIsMeasuredBeforeTheFirstCall(t *testing.T) {
	server := redistest.Start(t)
	right := open(t, server.URL())
	id, _ := create(t, right, newSession(1, "ann", 30*time.Minute), "")
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	late := openAt(t, server.URL(), new(wrongClock).by(time.Hour), func(o *redis.Options) { o.MayBeAway, o.Timeout = true, 250*time.Millisecond })
	if d := late.Status(t.Context()).ClockDifference; d != nil {
		t.Errorf("clock difference %v without Redis", *d)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store answers", func() bool {
		got, err := late.Get(t.Context(), id)
		if err == nil && got.GetPhase() != sessionv1.Session_ACTIVE {
			t.Errorf("read as %v", got.GetPhase())
		}
		return err == nil
	})
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// syncBuffer is a buffer that a log is written to while it is read.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestHoldIsJudgedByTheClockOfRedis: a hold that is new is no warning of a process
// whose clock is ahead, and one of long ago is one of a process whose clock is behind.
func TestHoldIsJudgedByTheClockOfRedis(t *testing.T) {
	server := redistest.Start(t)
	for name, skew := range map[string]time.Duration{"right": 0, "ahead": time.Hour, "behind": -time.Hour} {
		s := openAt(t, server.URL(), new(wrongClock).by(skew), func(o *redis.Options) { o.SettleMax = 10 * time.Minute })
		for _, age := range []time.Duration{0, 20 * time.Minute} {
			if err := s.Hold(t.Context(), "h", serverTime(t, raw(t, server)).Add(-age)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			warned := false
			for _, w := range s.Status(t.Context()).Warnings {
				warned = warned || w.Code == "expiry-held"
			}
			if warned != (age > 0) {
				t.Errorf("clock %s: a hold of %v ago: warned %v", name, age, warned)
			}
		}
	}
}

// TestDeadConsumerLeavesThoughTheClockOfRedisWentBack: a consumer that died before the
// clock of Redis went back by an hour keeps no shard from those that live.
func TestDeadConsumerLeavesThoughTheClockOfRedisWentBack(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dead := goredis.Z{Score: float64(time.Now().Add(time.Hour).UnixMilli()), Member: "dead"}
	if err := client.ZAdd(ctx, "stoker:{s0}:consumers:g", dead).Err(); err != nil {
		t.Fatal(err)
	}
	r, err := s.OpenFeed(ctx, "g", "alive")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for held := 0; held < storagetest.Shards; {
		b, err := r.Next(ctx, 10)
		if err != nil {
			t.Fatalf("%d of %d shards are read: %v", held, storagetest.Shards, err)
		}
		if b.Changed {
			held = len(b.Shards)
		}
	}
}
