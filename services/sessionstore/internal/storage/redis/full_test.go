package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// fullStore opens a store whose breakers stay open, and a session in it; full makes
// the server refuse every write that may take memory, for good, and opens the write
// breaker by such writes.
func fullStore(t *testing.T, change ...func(*redis.Options)) (s *redis.Store, full func()) {
	t.Helper()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Hour}, nil)
	s = open(t, server.URL(), append(change, func(o *redis.Options) { o.Breakers = breakers })...)
	client := raw(t, server)
	return s, func() {
		t.Helper()
		setConfig(t, client, "maxmemory", "1")
		storagetest.Until(t, "the write breaker opens", func() bool {
			_, _, err := s.Create(t.Context(), newSession(1, "bob", time.Hour), "")
			if !errors.Is(err, storage.ErrUnavailable) {
				t.Fatalf("a creation on a full server: %v", err)
			}
			return state(breakers, redis.ClassWrite).State == resilience.Open
		})
		t.Cleanup(func() {
			if st := state(breakers, redis.ClassWrite); st.State != resilience.Open {
				t.Errorf("the write breaker did not stay open: %+v", st)
			}
			if st := state(breakers, redis.ClassFree); !st.LastFailure.IsZero() {
				t.Errorf("a script was refused: %+v", st)
			}
		})
	}
}

func TestFullServerEndsSessions(t *testing.T) {
	s, full := fullStore(t)
	var ids []string
	for range 5 {
		id, _ := create(t, s, newSession(1, "ann", time.Hour), fmt.Sprint("request", len(ids)))
		ids = append(ids, id)
	}
	full()
	if x, err := s.End(t.Context(), ids[0], "done"); err != nil || x.GetEndTime() == nil {
		t.Errorf("ending: %v, %v", x, err)
	}
	if err := s.Delete(t.Context(), ids[1]); err != nil {
		t.Errorf("deleting: %v", err)
	}
	if _, err := s.Get(t.Context(), ids[1]); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the deleted session: %v", err)
	}
	// The sessions of a user are on one shard.
	user, err := s.List(t.Context(), storage.ListQuery{User: "ann", Limit: 10})
	if err != nil || len(user.Sessions) != 3 {
		t.Fatalf("listed %d, %v", len(user.Sessions), err)
	}
	if err := s.Replay(t.Context(), storage.Write{SessionID: ids[2], At: time.Now(), End: &storage.EndWrite{Reason: "replayed"}}); err != nil {
		t.Errorf("replaying an end: %v", err)
	}
}

func TestFullServerRevokes(t *testing.T) {
	s, full := fullStore(t)
	shard := storage.UserShard("acme", "ann", storagetest.Shards)
	for range 250 { // more than a batch
		create(t, s, newSession(shard, "ann", time.Hour), "")
	}
	full()
	if n, err := s.RevokeUser(t.Context(), "acme", "ann", nil, "revoked"); err != nil || n != 250 {
		t.Errorf("revoked %d, %v", n, err)
	}
}

// TestFullServerExtends: a session in use outlives a full memory, and its report does
// not hold the feed back.
func TestFullServerExtends(t *testing.T) {
	s, full := fullStore(t)
	in := newSession(1, "ann", time.Minute) // less than extend_below
	id, _ := create(t, s, in, "")
	full()
	r, err := s.Extend(t.Context(), []storage.Activity{{SessionID: id, EventID: "e", Kind: "input"}})
	if err != nil || r[0].Err != nil || r[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		t.Errorf("extending: %+v, %v", r, err)
	}
}

// TestFullServerSweeps: idle sessions are warned, expired and purged, the feed is
// trimmed, and a hold is set and released.
func TestFullServerSweeps(t *testing.T) {
	const sessions, base = 100, 2 * time.Second
	s, full := fullStore(t, func(o *redis.Options) { o.Retention, o.SettleMax = 500*time.Millisecond, time.Hour })
	r, err := s.OpenFeed(t.Context(), storage.ActivityGroup, "one")
	if err != nil {
		t.Fatal(err)
	}
	for n := range sessions {
		create(t, s, newSession(n%storagetest.Shards, "ann", base), "")
	}
	due := time.Now().Add(base)
	full()
	if err := s.Hold(t.Context(), "me", time.Now()); err != nil {
		t.Errorf("holding: %v", err)
	}
	if err := s.Hold(t.Context(), "me", time.Time{}); err != nil {
		t.Errorf("releasing: %v", err)
	}
	// The consumer leaves and another takes its shards over, with memory full.
	if err := r.Close(); err != nil {
		t.Errorf("leaving the feed: %v", err)
	}
	consume(t, s, "two")
	var sum storage.SweepResult
	var expired time.Time
	storagetest.Until(t, "all are warned, expired and purged", func() bool {
		some, err := s.Sweep(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sum.Warned, sum.Expired = sum.Warned+some.Warned, sum.Expired+some.Expired
		sum.Purged, sum.Trimmed = sum.Purged+some.Purged, sum.Trimmed+some.Trimmed
		if sum.Expired == sessions && expired.IsZero() {
			expired = time.Now()
		}
		return sum.Purged == sessions
	})
	t.Logf("%+v, all expired %v after the deadline", sum, expired.Sub(due))
	if sum.Warned != sessions || sum.Expired != sessions {
		t.Errorf("%+v, want %d of each", sum, sessions)
	}
	if late := expired.Sub(due); late > 2*time.Second {
		t.Errorf("all expired %v after the deadline, want at most 2 s", late)
	}
	// Three entries for each session: created, expiring, expired. The last of each
	// shard stays until there is another.
	storagetest.Until(t, "the feed is trimmed", func() bool {
		some, err := s.Sweep(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sum.Trimmed += some.Trimmed
		return sum.Trimmed >= 3*sessions-storagetest.Shards
	})
}

// consume reads the feed as the activity service does, and acknowledges it, until the
// test ends.
func consume(t *testing.T, s *redis.Store, consumer string) {
	t.Helper()
	r, err := s.OpenFeed(t.Context(), storage.ActivityGroup, consumer)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		work.Wait()
		if err := r.Close(); err != nil {
			t.Errorf("leaving the feed: %v", err)
		}
	})
	work.Go(func() {
		for ctx.Err() == nil {
			b, err := r.Next(ctx, 1000)
			if err != nil && ctx.Err() == nil {
				t.Errorf("reading the feed: %v", err)
				return
			}
			var acks []storage.FeedAck
			for _, e := range b.Entries {
				acks = append(acks, storage.FeedAck{Shard: int(e.GetShard()), Cursor: e.GetCursor()})
			}
			if err := r.Ack(ctx, acks); err != nil && ctx.Err() == nil {
				t.Errorf("acknowledging: %v", err)
				return
			}
		}
	})
}

// TestFullServerRecovers: under callers that go on creating sessions, a full memory
// falls as soon as sessions expire, and creations work again.
func TestFullServerRecovers(t *testing.T) {
	const base, room = 4 * time.Second, 4 << 20
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: 200 * time.Millisecond}, nil)
	s := open(t, server.URL(), func(o *redis.Options) {
		o.Breakers, o.Retention, o.SettleMax = breakers, 500*time.Millisecond, time.Hour
	})
	client := raw(t, server)
	consume(t, s, "one")
	limit := memoryField(t, client, "used_memory") + room
	setConfig(t, client, "maxmemory", strconv.FormatInt(limit, 10))

	var created, refused atomic.Int64
	stopCallers := repeat(t, 4, func(n int) {
		in := newSession(n%storagetest.Shards, "ann", base)
		in.Labels = map[string]string{"filler": strings.Repeat("x", 8<<10)}
		switch _, _, err := s.Create(context.Background(), in, ""); {
		case err == nil:
			created.Add(1)
		case errors.Is(err, storage.ErrUnavailable):
			refused.Add(1)
			time.Sleep(time.Millisecond) // a caller's pace
		default:
			t.Errorf("a creation: %v", err)
		}
	})
	storagetest.Until(t, "memory is full, and the write breaker open", func() bool {
		return refused.Load() > 100 && state(breakers, redis.ClassWrite).Trips > 0
	})
	first, full := created.Load(), memoryField(t, client, "used_memory")
	if first < 100 || full < limit-room/8 {
		t.Fatalf("%d sessions in %d of %d bytes: it is not full", first, full, limit)
	}
	repeat(t, 1, func(int) {
		if _, err := s.Sweep(context.Background()); err != nil {
			t.Errorf("sweeping: %v", err)
		}
		time.Sleep(50 * time.Millisecond) // the sweeper's interval
	})
	storagetest.Until(t, "callers fill what becomes free", func() bool { return created.Load() > 2*first })
	stopCallers()
	lowest := full
	storagetest.Until(t, "memory falls by half", func() bool {
		lowest = min(lowest, memoryField(t, client, "used_memory"))
		return limit-lowest > room/2
	})
	t.Logf("%d created, %d refused; memory %d when full, %d later, of %d", created.Load(), refused.Load(), full, lowest, limit)
	storagetest.Until(t, "sessions are created", func() bool {
		_, _, err := s.Create(t.Context(), newSession(1, "ann", time.Hour), "")
		return err == nil
	})
	if st := state(breakers, redis.ClassFree); !st.LastFailure.IsZero() {
		t.Errorf("a script was refused: %+v", st)
	}
}

// repeat calls do with 0, 1, 2 ... from each of some goroutines, until the returned
// function is called or the test ends.
func repeat(t *testing.T, goroutines int, do func(n int)) (stop func()) {
	t.Helper()
	var stopped atomic.Bool
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for n := 0; !stopped.Load(); n++ {
				do(n)
			}
		})
	}
	stop = func() {
		stopped.Store(true)
		all.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func memoryField(t testing.TB, client *goredis.Client, field string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(infoField(t, client, "memory", field), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFullServerMarksLosses: where an older snapshot fills the memory of its server,
// readers are told of what was lost, too, and what ended is not ended again for ever.
func TestFullServerMarksLosses(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction", "--maxmemory", "1")
	client := raw(t, server)
	setConfig(t, client, "maxmemory", "0") // until it restarts
	s, _ := sweeping(t, server.URL())
	ctx := t.Context()
	id := sessionOn(t, s, 1)
	marked(t, client, 1)
	save(t, client)
	marked(t, client, 1)
	if _, err := s.Append(ctx, id, []*sessionv1.Event{{Id: "lost", Type: "input:text"}}); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the feed was read", func() bool { return s.Seen(1) == feedEnd(t, client, "stoker:{s1}:feed") })
	restore(t, server)
	detected(t, s, 1)
	storagetest.Until(t, "the session is marked", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		return client.HExists(ctx, "stoker:{s1}:session:"+id, "gap").Val()
	})
	if err := client.Set(ctx, "x", "y", 0).Err(); err == nil {
		t.Error("memory is not full")
	}
}
