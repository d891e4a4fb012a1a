package redis_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestLossWhileNoReplicaRuns: with a data directory, a replica finds a loss that
// happened while it did not run, and another data set.
func TestLossWhileNoReplicaRuns(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, server *redistest.Server){
		"older snapshot": restore,
		"flushed": func(t *testing.T, server *redistest.Server) {
			t.Helper()
			if err := raw(t, server).FlushAll(context.Background()).Err(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			server, dir := redistest.Start(t), t.TempDir()
			client := raw(t, server)
			in := func(o *redis.Options) { o.DataDir = dir }
			s := open(t, server.URL(), in)
			stop := keepSweeping(t, s)
			marked(t, client, 1)
			save(t, client)
			marked(t, client, 1)
			stop()
			if _, err := s.Sweep(t.Context()); err != nil { // the one before may have been cut off
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again := open(t, server.URL(), in)
			if _, err := again.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := again.Status(t.Context()); st.Losses != 0 {
				t.Fatalf("a restart alone: %+v", st)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			lose(t, server)
			third := open(t, server.URL(), in)
			if _, err := third.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			st := third.Status(t.Context())
			if st.Losses != 1 || (st.LossSpan > 0) != (name == "older snapshot") {
				t.Errorf("%d losses, a span of %v", st.Losses, st.LossSpan)
			}
			if fresh := open(t, server.URL()); fresh.Status(t.Context()).Losses != 0 {
				t.Error("a replica without a past reports a loss")
			}
		})
	}
}

// TestMalformedMarkFile: a file that cannot be read keeps no replica from starting.
func TestMalformedMarkFile(t *testing.T) {
	server, dir := redistest.Start(t), t.TempDir()
	file := filepath.Join(dir, "redis-marks.json")
	for _, text := range []string{"", "{", `{"replica":""}`, `{"replica":"x","marks":{"0":"y"}}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, server.URL(), func(o *redis.Options) { o.DataDir = dir })
		if _, err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := s.Status(t.Context()); st.Losses != 0 {
			t.Errorf("%q: %+v", text, st)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if raw, err := os.ReadFile(file); err != nil || len(raw) < 40 {
			t.Errorf("%q: saved %q, %v", text, raw, err)
		}
	}
}

// TestNoLossIsReportedWithoutOne: restarts that keep the data, clocks that jump, full
// memory, marks that were removed, and another server in the role are no loss.
func TestNoLossIsReportedWithoutOne(t *testing.T) {
	ctx := context.Background()
	for name, do := range map[string]func(t *testing.T, server *redistest.Server, clock *atomic.Int64){
		"restart with appendfsync always": func(t *testing.T, server *redistest.Server, _ *atomic.Int64) {
			t.Helper()
			for range 3 {
				restore(t, server)
				marked(t, raw(t, server), 1)
			}
		},
		"the store's clock jumps": func(t *testing.T, server *redistest.Server, clock *atomic.Int64) {
			t.Helper()
			for _, by := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour} {
				clock.Add(int64(by))
				marked(t, raw(t, server), 1)
			}
		},
		"full memory": func(t *testing.T, server *redistest.Server, _ *atomic.Int64) {
			t.Helper()
			client := raw(t, server)
			client.ConfigSet(ctx, "maxmemory-policy", "noeviction")
			client.ConfigSet(ctx, "maxmemory", "1")
			if err := client.Set(ctx, "x", "y", 0).Err(); err == nil {
				t.Fatal("memory is not full")
			}
			time.Sleep(time.Second) // several looks
			client.ConfigSet(ctx, "maxmemory", "0")
			marked(t, client, 1)
		},
		"a mark that was removed after a day": func(t *testing.T, server *redistest.Server, _ *atomic.Int64) {
			t.Helper()
			client := raw(t, server)
			for field := range client.HGetAll(ctx, "stoker:{s0}:marks").Val() {
				client.HDel(ctx, "stoker:{s0}:marks", field)
			}
			client.HSet(ctx, "stoker:{s0}:marks", "removed", time.Now().Add(time.Second).UnixMilli())
			marked(t, client, 1)
		},
		"a replica of the server takes over": func(t *testing.T, server *redistest.Server, _ *atomic.Int64) {
			t.Helper()
			replica := redistest.Start(t, "--repl-diskless-sync-delay", "0")
			follow(t, replica, server)
			client := raw(t, replica)
			client.Do(ctx, "wait", 1, 1000)
			n := client.HLen(ctx, "stoker:{s0}:marks").Val()
			client.Do(ctx, "replicaof", "no", "one")
			if n == 0 || client.HLen(ctx, "stoker:{s0}:marks").Val() != n {
				t.Error("the marks were not replicated")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			var offset atomic.Int64
			s, log := sweeping(t, server.URL(), func(o *redis.Options) {
				o.Clock = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
			})
			create(t, s, newSession(1, "ann", time.Hour), "")
			marked(t, raw(t, server), 1)
			do(t, server, &offset)
			storagetest.Until(t, "it sweeps", func() bool { _, err := s.Sweep(ctx); return err == nil })
			if st := s.Status(ctx); st.Losses != 0 || st.LossSpan != 0 || log.losses() != 0 {
				t.Errorf("%d losses, %v, logged %d times", st.Losses, st.LossSpan, log.losses())
			}
		})
	}
}

// follow makes a server a replica of another, and waits until it has all data.
func follow(t *testing.T, replica, master *redistest.Server) {
	t.Helper()
	host, port, _ := strings.Cut(master.Addr, ":")
	client := raw(t, replica)
	if err := client.Do(context.Background(), "replicaof", host, port).Err(); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the replica is in sync", func() bool {
		info := client.Info(context.Background(), "replication").Val()
		return strings.Contains(info, "master_link_status:up") && strings.Contains(info, "master_sync_in_progress:0")
	})
}

// TestTheSameSnapshotTwice: data that goes back to the same moment again is lost again.
func TestTheSameSnapshotTwice(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	s, log := sweeping(t, server.URL())
	marked(t, client, 1)
	save(t, client)
	for n := range int64(3) {
		marked(t, client, 1)
		restore(t, server)
		detected(t, s, n+1)
	}
	marked(t, client, 1)
	if st := s.Status(t.Context()); st.Losses != 3 || log.losses() != 3 {
		t.Errorf("%d losses, logged %d times, want 3", st.Losses, log.losses())
	}
}

// TestLossBetweenTwoMarks: a loss that is shorter than the time between two marks is
// found by what was seen of the feed.
func TestLossBetweenTwoMarks(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	id := sessionOn(t, s, 1)
	if _, err := s.Sweep(t.Context()); err != nil { // the only mark
		t.Fatal(err)
	}
	save(t, client)
	other := sessionOn(t, s, 1)
	storagetest.Until(t, "its creation was seen", func() bool {
		return s.Seen(1) == feedEnd(t, client, "stoker:{s1}:feed")
	})
	restore(t, server)
	if _, err := s.Get(t.Context(), other); err == nil {
		t.Fatal("nothing was lost")
	}
	st := detected(t, s, 1)
	if st.LossSpan > 10*time.Second {
		t.Errorf("a span of %v", st.LossSpan)
	}
	if _, err := s.Get(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// TestReadingNeedsNoWrite: a full server is swept, and a store opens over it.
func TestReadingNeedsNoWrite(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	sessionOn(t, s, 1)
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	client.ConfigSet(ctx, "maxmemory", "1")
	if err := client.Set(ctx, "x", "y", 0).Err(); err == nil {
		t.Fatal("memory is not full")
	}
	if _, err := s.Sweep(ctx); err != nil {
		t.Error("sweeping:", err)
	}
	if _, err := open(t, server.URL()).Sweep(ctx); err != nil {
		t.Error("sweeping by a new replica:", err)
	}
}

// TestMarksAreBounded: marks of replicas that are gone leave.
func TestMarksAreBounded(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	ctx := t.Context()
	now := time.Now()
	for i := range 400 {
		client.HSet(ctx, "stoker:{s0}:marks", "at:recent"+strconv.Itoa(i), now.UnixMilli()-int64(i))
		client.HSet(ctx, "stoker:{s0}:marks", "at:old"+strconv.Itoa(i), now.Add(-25*time.Hour).UnixMilli()-int64(i))
	}
	s := open(t, server.URL())
	if _, err := s.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	all := client.HGetAll(ctx, "stoker:{s0}:marks").Val()
	if len(all) != redis.MarksMost+1 { // and "removed"
		t.Errorf("%d fields", len(all))
	}
	if _, ok := all["at:recent0"]; !ok {
		t.Error("the latest was removed")
	}
	if _, ok := all["at:old0"]; ok {
		t.Error("one of yesterday is there")
	}
	if got, want := all["removed"], strconv.FormatInt(now.UnixMilli()-int64(redis.MarksMost)+1, 10); got != want {
		t.Errorf("removed %s, want %s", got, want)
	}
}

// TestLostIsCalled: the layers above hear of a loss.
func TestLostIsCalled(t *testing.T) {
	server := redistest.Start(t)
	var calls atomic.Int64
	s := open(t, server.URL(), func(o *redis.Options) { o.Lost = func() { calls.Add(1) } })
	for range 2 {
		if _, err := s.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if calls.Load() != 0 {
		t.Error("called without a loss")
	}
	if err := raw(t, server).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(t.Context()); calls.Load() != 1 || st.Losses != 1 || st.LossSpan != 0 {
		t.Errorf("%d calls, %+v", calls.Load(), st)
	}
	if _, err := s.Get(t.Context(), sessionOn(t, s, 1)); errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
}
