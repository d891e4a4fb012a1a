package redis

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// tail follows the feed of every shard with one reader for the whole store and
// wakes those who wait: long polls and watches by session, feed readers by
// shard. What it reads is only a hint; who is woken reads for himself.
type tail struct {
	s    *Store
	last []string // by shard: the last entry seen

	mu      sync.Mutex
	waiters map[string]map[chan struct{}]struct{}
	readers map[*reader]struct{}
}

const (
	tailBlock = 500 * time.Millisecond
	// tailPause is the time between two looks at a cluster, whose shards no
	// single command can wait on.
	tailPause = 25 * time.Millisecond
	tailCount = 1000
)

func newTail(s *Store) *tail {
	return &tail{
		s: s, last: make([]string, len(s.shards)),
		waiters: map[string]map[chan struct{}]struct{}{}, readers: map[*reader]struct{}{},
	}
}

// subscribe returns a channel that is signalled when a session has something
// new, until leave is called.
func (t *tail) subscribe(id string) (news <-chan struct{}, leave func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiters[id] == nil {
		t.waiters[id] = map[chan struct{}]struct{}{}
	}
	t.waiters[id][ch] = struct{}{}
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.waiters[id], ch)
		if len(t.waiters[id]) == 0 {
			delete(t.waiters, id)
		}
	}
}

// join adds a reader. An earlier one of the same consumer ends at once where it
// is in this process, and at its next renewal where it is not.
func (t *tail) join(r *reader) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for old := range t.readers {
		if old.group == r.group && old.consumer == r.consumer {
			old.shut()
		}
	}
	t.readers[r] = struct{}{}
}

// part removes a reader; it says whether it was there.
func (t *tail) part(r *reader) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.readers[r]
	delete(t.readers, r)
	return ok
}

// run follows until the store is closed.
func (t *tail) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t.s.work.Go(func() {
		<-t.s.closed
		cancel()
	})
	failures := 0
	for ctx.Err() == nil {
		err := t.follow(ctx)
		if err == nil {
			failures = 0
			continue
		}
		if t.s.open(ctx) != nil {
			return
		}
		if failures++; failures&(failures-1) == 0 { // the 1st, 2nd, 4th, 8th ... in a row
			t.s.opts.Log.Warn("the feed cannot be followed", slog.Int("inARow", failures), slog.Any("error", err))
		}
		t.pause(ctx, min(time.Second, tailPause*time.Duration(failures)))
	}
}

func (t *tail) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (t *tail) follow(ctx context.Context) error {
	if t.last[0] == "" {
		if err := t.s.usable(ctx); err != nil {
			return err
		}
		if err := t.seek(ctx); err != nil {
			return err
		}
	}
	var streams []goredis.XStream
	var err error
	if t.s.conn.cluster {
		streams, err = t.look(ctx)
		if err == nil && len(streams) == 0 {
			t.pause(ctx, tailPause)
		}
	} else {
		streams, err = t.block(ctx)
	}
	for _, st := range streams {
		t.wake(st)
	}
	return err
}

// seek begins at the end of every feed.
func (t *tail) seek(ctx context.Context) error {
	cmds := make([]*goredis.XMessageSliceCmd, len(t.s.shards))
	for i, sh := range t.s.shards {
		cmds[i] = goredis.NewXMessageSliceCmd(ctx, "xrevrange", sh.feed(), "+", "-", "count", 1)
	}
	if err := t.s.conn.stream.pipeline(ctx, asCmders(cmds)...); err != nil {
		return err
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			return err
		}
	}
	for i := len(cmds) - 1; i >= 0; i-- {
		t.last[i] = "0-0"
		if m := cmds[i].Val(); len(m) > 0 {
			t.last[i] = m[0].ID
		}
	}
	return nil
}

// block waits on all feeds of a single server with one command.
func (t *tail) block(ctx context.Context) ([]goredis.XStream, error) {
	keys := make([]string, 0, 2*len(t.s.shards))
	for _, sh := range t.s.shards {
		keys = append(keys, sh.feed())
	}
	// By itself go-redis waits for 10 s beyond the block. A server that is gone
	// without a word must keep neither Close nor the waiters for that long.
	ctx, cancel := context.WithTimeout(ctx, tailBlock+t.s.opts.Timeout)
	defer cancel()
	streams, err := t.s.conn.stream.client.XRead(ctx, &goredis.XReadArgs{
		Streams: append(keys, t.last...), Count: tailCount, Block: tailBlock,
	}).Result()
	if errors.Is(err, goredis.Nil) {
		err = nil
	}
	return streams, err
}

// look asks each shard of a cluster once.
func (t *tail) look(ctx context.Context) ([]goredis.XStream, error) {
	cmds := make([]*goredis.XStreamSliceCmd, len(t.s.shards))
	for i, sh := range t.s.shards {
		cmds[i] = goredis.NewXStreamSliceCmd(ctx, "xread", "count", tailCount, "streams", sh.feed(), t.last[i])
	}
	if err := t.s.conn.stream.pipeline(ctx, asCmders(cmds)...); err != nil {
		return nil, err
	}
	var all []goredis.XStream
	var errs []error
	for _, cmd := range cmds {
		streams, err := cmd.Result()
		if err != nil && !errors.Is(err, goredis.Nil) {
			errs = append(errs, err)
		}
		all = append(all, streams...)
	}
	return all, errors.Join(errs...)
}

func (t *tail) wake(st goredis.XStream) {
	n := -1
	for i, sh := range t.s.shards {
		if sh.feed() == st.Stream {
			n = i
			break
		}
	}
	if n < 0 || len(st.Messages) == 0 {
		return
	}
	t.last[n] = st.Messages[len(st.Messages)-1].ID
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.readers {
		r.dirty(n)
	}
	for _, m := range st.Messages {
		id, _ := m.Values["s"].(string)
		if t.s.opts.Changed != nil {
			t.s.opts.Changed(id)
		}
		for ch := range t.waiters[id] {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}
