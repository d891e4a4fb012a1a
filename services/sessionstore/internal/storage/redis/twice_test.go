package redis_test

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// outage fails what is written to keys with a prefix, while it is on.
type outage struct {
	on     atomic.Bool
	prefix string
}

func (*outage) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (o *outage) hits(cmd goredis.Cmder) bool {
	args := cmd.Args()
	key, _ := args[min(3, len(args)-1)].(string)
	return o.on.Load() && strings.HasPrefix(key, o.prefix)
}

func (o *outage) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if o.hits(cmd) {
			cmd.SetErr(os.ErrDeadlineExceeded)
			return os.ErrDeadlineExceeded
		}
		return next(ctx, cmd)
	}
}

func (o *outage) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if slices.ContainsFunc(cmds, o.hits) {
			for _, cmd := range cmds {
				cmd.SetErr(os.ErrDeadlineExceeded)
			}
			return os.ErrDeadlineExceeded
		}
		return next(ctx, cmds)
	}
}

// TestEndedStaysEndedThroughTwoLosses: what was ended again after a loss is ended once
// more when that is lost, too, however long ago it ended first.
func TestEndedStaysEndedThroughTwoLosses(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for longer than the margin of a loss")
	}
	server := redistest.Start(t)
	client := raw(t, server)
	s, _ := sweeping(t, server.URL())
	slow := &outage{prefix: "stoker:{s1}:session:"}
	s.WatchWrites(slow)
	ctx := t.Context()
	ended, deleted := sessionOn(t, s, 1), sessionOn(t, s, 1)
	marked(t, client, 1)
	save(t, client)
	if _, err := s.End(ctx, ended, "stolen"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, deleted); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the feed was read", func() bool { return s.Seen(1) == feedEnd(t, client, "stoker:{s1}:feed") })
	time.Sleep(redis.ReapplyMargin + time.Second)
	marked(t, client, 1)
	over := func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		return client.HGet(ctx, "stoker:{s1}:session:"+ended, "st").Val() == "1" &&
			client.Exists(ctx, "stoker:{s1}:session:"+deleted).Val() == 0
	}
	slow.on.Store(true)
	restore(t, server)
	detected(t, s, 1)
	marked(t, client, 1)
	if over() {
		t.Fatal("nothing was lost")
	}
	save(t, client) // from between: after the loss, before anything has ended again
	slow.on.Store(false)
	storagetest.Until(t, "what ended has ended again", over)
	storagetest.Until(t, "the feed was read", func() bool { return s.Seen(1) == feedEnd(t, client, "stoker:{s1}:feed") })
	marked(t, client, 1)
	restore(t, server)
	detected(t, s, 2)
	storagetest.Until(t, "what ended has ended once more", over)
}

// TestEveryLossLeavesItsMark: where a session loses events twice before the first loss
// could be marked, readers are told of both places.
func TestEveryLossLeavesItsMark(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	s, _ := sweeping(t, server.URL())
	slow := &outage{prefix: "stoker:{s1}:session:"}
	s.WatchWrites(slow)
	ctx := t.Context()
	id := sessionOn(t, s, 1)
	appendTo := func(event string) {
		t.Helper()
		fresh := open(t, server.URL()) // knows of no loss
		if _, err := fresh.Append(ctx, id, []*sessionv1.Event{{Id: event, Type: "input:text"}}); err != nil {
			t.Fatal(err)
		}
		if err := fresh.Close(); err != nil {
			t.Fatal(err)
		}
	}
	slow.on.Store(true)
	for n := range int64(2) {
		appendTo("kept" + strconv.FormatInt(n, 10))
		marked(t, client, 1)
		save(t, client)
		marked(t, client, 1)
		appendTo("lost" + strconv.FormatInt(n, 10))
		storagetest.Until(t, "the feed was read", func() bool { return s.Seen(1) == feedEnd(t, client, "stoker:{s1}:feed") })
		restore(t, server)
		detected(t, s, n+1)
	}
	appendTo("new")
	slow.on.Store(false)
	storagetest.Until(t, "both places are marked", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		return len(strings.Fields(client.HGet(ctx, "stoker:{s1}:session:"+id, "gap").Val())) == 2
	})
	at := "0"
	for i, limit := range []int{2, 1, 1} { // what was kept at first, then what follows each loss
		p, err := s.ListEvents(ctx, storage.EventQuery{SessionID: id, After: at, Limit: limit})
		if err != nil || p.Truncated != (i > 0) {
			t.Errorf("after %s: %+v, %v", at, p, err)
		}
		at = p.Next
	}
}

// TestEarlierLossIsNotForgotten: endings are applied again since the earliest of the
// losses that wait.
func TestEarlierLossIsNotForgotten(t *testing.T) {
	for _, froms := range [][]int64{{7, 9}, {9, 7}, {7}, {9, -4, 8}} {
		want := max(1, slices.Min(froms))
		if got := redis.ReappliedSince(froms...); got != want {
			t.Errorf("losses since %v: %d, want %d", froms, got, want)
		}
	}
}
