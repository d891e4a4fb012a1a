package redis_test

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// lostReplies carries commands out and loses their replies, while it is on, where they
// contain a key.
type lostReplies struct {
	on  atomic.Bool
	key string
	n   atomic.Int64
}

func (*lostReplies) DialHook(next goredis.DialHook) goredis.DialHook          { return next }
func (*lostReplies) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook { return next }

func (l *lostReplies) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			args := cmd.Args()
			if key, _ := args[min(3, len(args)-1)].(string); l.on.Load() && key == l.key && cmd.Err() == nil {
				l.n.Add(1)
				cmd.SetErr(os.ErrDeadlineExceeded)
				err = os.ErrDeadlineExceeded
			}
		}
		return err
	}
}

// TestLossIsFoundWithoutTheFirstReply: where the reply to the first look after a loss
// is lost, the next look still finds it.
func TestLossIsFoundWithoutTheFirstReply(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	drop := &lostReplies{key: "stoker:{s0}:marks"}
	s.WatchWrites(drop)
	ctx := t.Context()
	sweep := func() error { _, err := s.Sweep(ctx); return err }
	id := sessionOn(t, s, 1)
	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	save(t, client)
	time.Sleep(50 * time.Millisecond) // the span
	// It is not in the feed.
	if _, err := s.Update(ctx, id, storage.Update{SetData: true}); err != nil {
		t.Fatal(err)
	}
	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	restore(t, server)
	storagetest.Until(t, "it is connected again", func() bool { _, err := s.Get(ctx, id); return err == nil })
	drop.on.Store(true)
	storagetest.Until(t, "a look has run without a reply", func() bool { return sweep() != nil && drop.n.Load() > 0 })
	drop.on.Store(false)
	storagetest.Until(t, "it sweeps", func() bool { return sweep() == nil })
	if st := s.Status(ctx); st.Losses != 1 || st.LossSpan < 50*time.Millisecond {
		t.Errorf("%d losses, a span of %v", st.Losses, st.LossSpan)
	}
}
