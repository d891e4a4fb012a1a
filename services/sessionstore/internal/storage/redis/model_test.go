package redis_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestModelLifetimes holds the scripts against the reference, on a server whose
// clock the test sets.
func TestModelLifetimes(t *testing.T) {
	server := redistest.Start(t)
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer func() { _ = client.Close() }()
	storagetest.CheckLifetimes(t, func() storagetest.ModelStore { return modelStore(t, server, client) })
}

func modelStore(t *testing.T, server *redistest.Server, client *goredis.Client) storagetest.ModelStore {
	t.Helper()
	ctx := context.Background()
	if err := client.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	var now atomic.Int64
	set := func(ms int64) {
		now.Store(ms)
		if err := client.Set(ctx, redis.ClockKey, ms, 0).Err(); err != nil {
			t.Error(err)
		}
	}
	set(storagetest.ModelStart)
	o := storagetest.OptionsFor(time.Second)
	opts := redis.Options{
		URL: server.URL(), Timeout: 5 * time.Second, Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents,
		SettleMax: o.SettleMax, Retention: o.Retention, LeaseTTL: time.Minute,
		Clock: func() time.Time { return time.UnixMilli(now.Load()) },
	}
	opts.SetClockByKey()
	var s *redis.Store
	start := func() storage.Store {
		var err error
		if s, err = redis.New(ctx, opts); err != nil {
			t.Fatal(err)
		}
		return s
	}
	stop := func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	return storagetest.ModelStore{
		Store: start(), SetClock: set, Close: stop,
		Restart: func() storage.Store {
			stop()
			if err := client.ScriptFlush(ctx).Err(); err != nil {
				t.Error(err)
			}
			return start()
		},
	}
}
