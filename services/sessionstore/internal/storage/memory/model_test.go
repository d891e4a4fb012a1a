package memory_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func TestModelLifetimes(t *testing.T) {
	for name, durable := range map[string]bool{"memory": false, "durable": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.CheckLifetimes(t, func() storagetest.ModelStore { return modelStore(t, durable) })
		})
	}
}

func modelStore(t *testing.T, durable bool) storagetest.ModelStore {
	t.Helper()
	var now atomic.Int64
	o := storagetest.OptionsFor(time.Second)
	opts := memory.Options{
		Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention,
		Clock: func() time.Time { return time.UnixMilli(now.Load()) },
	}
	if durable {
		opts.DataDir = t.TempDir()
	}
	var s *memory.Store
	start := func() storage.Store {
		var err error
		if s, err = memory.New(opts); err != nil {
			t.Fatal(err)
		}
		return s
	}
	stop := func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	ms := storagetest.ModelStore{Store: start(), SetClock: now.Store, Close: stop}
	restarts := 0
	if durable {
		ms.Restart = func() storage.Store {
			// What comes back is read from the log, from a snapshot, or from one
			// with a log after it.
			if restarts++; restarts%2 == 0 {
				if err := s.Snapshot(); err != nil {
					t.Error(err)
				}
			}
			stop()
			return start()
		}
	}
	return ms
}
