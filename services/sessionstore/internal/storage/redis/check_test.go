package redis_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func mayBeAway(o *redis.Options) {
	o.MayBeAway, o.Timeout = true, 500*time.Millisecond
}

// away returns a server that has ended; Restart brings it back.
func away(t *testing.T) *redistest.Server {
	t.Helper()
	server := redistest.Start(t)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	return server
}

func TestRedisMustBeThereAtTheStart(t *testing.T) {
	server := away(t)
	_, err := redis.New(t.Context(), redis.Options{URL: server.URL(), Clock: time.Now})
	if !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("started without Redis: %v", err)
	}
}

// TestStartsBeforeRedis: a store that may start alone says that it is
// unavailable until Redis comes, and works from then on.
func TestStartsBeforeRedis(t *testing.T) {
	server := away(t)
	s := open(t, server.URL(), mayBeAway)
	id := sessionid.New(1)
	if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("read: %v, want unavailable", err)
	}
	if st := s.Status(t.Context()); !errors.Is(st.Err, storage.ErrUnavailable) {
		t.Errorf("status: %v, want unavailable", st.Err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ended, id); !errors.Is(err, context.Canceled) {
		t.Errorf("read of a caller who has left: %v", err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "Redis has come", func() bool { return s.Status(t.Context()).Err == nil })
	storagetest.Until(t, "the session is stored", func() bool {
		_, _, err := s.Create(t.Context(), newSession(1, "ann", time.Minute), "r")
		return err == nil
	})
	if got := raw(t, server).HGet(t.Context(), "stoker:{s0}:meta", "shards").Val(); got == "" {
		t.Error("the number of shards was not written before the first session")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), id); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("read after the end: %v", err)
	}
}

// TestStartsBeforeAnyKindOfDeployment.
func TestStartsBeforeAnyKindOfDeployment(t *testing.T) {
	for name, url := range map[string]string{
		"one server": "redis://127.0.0.1:1/0", "cluster": "redis://127.0.0.1:1,127.0.0.1:2", "sentinel": "redis+sentinel://127.0.0.1:1,127.0.0.1:2/m/0",
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, url, mayBeAway)
			if _, err := s.Get(t.Context(), sessionid.New(1)); !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("read: %v, want unavailable", err)
			}
		})
	}
}

// TestOtherDataIsRefusedForGood: what turns out to be another deployment's
// Redis is never written to, whoever asks and how many at once.
func TestOtherDataIsRefusedForGood(t *testing.T) {
	// It must be there before the server is: the store looks as soon as it can.
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	client := raw(t, server)
	if err := client.HSet(t.Context(), "stoker:{s0}:meta", "shards", "7", "format", "1", "epoch", "e").Err(); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	s := open(t, server.URL(), mayBeAway, func(o *redis.Options) { o.Shards = 3 })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := client.DBSize(t.Context()).Val()
	refused := func(err error) bool {
		return err != nil && !errors.Is(err, storage.ErrUnavailable) && strings.Contains(err.Error(), "--shards: got 3, but this Redis was first used with 7")
	}
	storagetest.Until(t, "Redis is reached", func() bool { return !errors.Is(s.Status(t.Context()).Err, storage.ErrUnavailable) })
	if err := s.Status(t.Context()).Err; !refused(err) {
		t.Errorf("status: %v", err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			ctx := context.Background()
			_, err1 := s.Get(ctx, sessionid.New(1))
			_, _, err2 := s.Create(ctx, newSession(1, "ann", time.Minute), "r")
			_, err3 := s.Extend(ctx, []storage.Activity{{SessionID: sessionid.New(1)}})
			_, err4 := s.Sweep(ctx)
			_, err5 := s.OpenFeed(ctx, "g", "c")
			_, err6 := s.GetPolicy(ctx, "acme")
			for i, err := range []error{err1, err2, err3, err4, err5, err6} {
				if !refused(err) {
					t.Errorf("operation %d: %v", i, err)
				}
			}
		})
	}
	all.Wait()
	// It stays so, also when Redis is made to look right.
	if err := client.HSet(t.Context(), "stoker:{s0}:meta", "shards", "3").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), sessionid.New(1)); !refused(err) {
		t.Errorf("later: %v", err)
	}
	if after := client.DBSize(t.Context()).Val(); after != before {
		t.Errorf("%d keys, %d before: something was written", after, before)
	}
}

// TestTheCheckIsMadeOnce for all who come while Redis is away and returns.
func TestTheCheckIsMadeOnce(t *testing.T) {
	server := away(t)
	s := open(t, server.URL(), mayBeAway)
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			storagetest.Until(t, "a read is answered", func() bool {
				_, err := s.Get(t.Context(), sessionid.New(1))
				return errors.Is(err, storage.ErrNotFound)
			})
		})
	}
	all.Wait()
	// A check runs two scripts, one for the rights and one for the data; there were no
	// others so far.
	stats := raw(t, server).Info(t.Context(), "commandstats").Val()
	if n := strings.Count(stats, "cmdstat_eval:calls=2,"); n != 1 {
		t.Errorf("the scripts ran other than once each:\n%s", stats)
	}
}

// TestWrongKindOfDeployment: the error says which scheme the URL should have.
func TestWrongKindOfDeployment(t *testing.T) {
	single := redistest.Start(t)
	c := redistest.StartCluster(t, 3)
	node := c.Nodes[0]
	if c.MasterOf(t, c.SlotOf(t, "stoker:{s0}:meta")) == node.Addr {
		node = c.Nodes[1]
	}
	for url, want := range map[string]string{
		"redis+cluster://" + single.Addr: "want redis://",
		"redis://" + node.Addr:           "want redis+cluster://",
	} {
		_, err := redis.New(t.Context(), redis.Options{URL: url, Timeout: time.Second, Shards: 8, Clock: time.Now})
		t.Log(err)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
