package redis

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// tail follows the feed of every shard with one reader for the whole store and
// wakes those who wait: long polls and watches by session, feed readers by
// shard. What it reads is only a hint; who is woken reads for himself. So it need
// not be complete, as long as everybody on a shard is woken where it may have
// missed something: then nobody has to look by himself now and then.
type tail struct {
	s     *Store
	feeds map[string]int // the shard of a feed's key
	last  []string       // by shard: the last entry seen, '' for none looked for
	// doubt is where something may have been missed: before the first look, and
	// since a look failed.
	doubt []bool
	// seen are the times of the last entries seen, by shard, in Unix milliseconds.
	seen   []atomic.Int64
	recent recent
	// lost asks for doubt everywhere.
	lost atomic.Bool

	mu      sync.Mutex
	waiters []map[string]map[chan struct{}]struct{} // by shard and session
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
	t := &tail{
		s: s, feeds: map[string]int{}, last: make([]string, len(s.shards)), doubt: make([]bool, len(s.shards)), seen: make([]atomic.Int64, len(s.shards)),
		waiters: make([]map[string]map[chan struct{}]struct{}, len(s.shards)), readers: map[*reader]struct{}{},
	}
	for n, sh := range s.shards {
		t.feeds[sh.feed()] = n
		t.doubt[n] = true
		t.waiters[n] = map[string]map[chan struct{}]struct{}{}
	}
	return t
}

// subscribe returns a channel that is signalled when a session of a shard may
// have something new, until leave is called.
func (t *tail) subscribe(n int, id string) (news <-chan struct{}, leave func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	waiters := t.waiters[n]
	if waiters[id] == nil {
		waiters[id] = map[chan struct{}]struct{}{}
	}
	waiters[id][ch] = struct{}{}
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(waiters[id], ch)
		if len(waiters[id]) == 0 {
			delete(waiters, id)
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
	ctx, cancel := t.s.untilClosed()
	defer cancel()
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

// follow looks once. What fails is in doubt from then on.
func (t *tail) follow(ctx context.Context) error {
	if t.lost.Swap(false) {
		t.doubtAll()
	}
	// Of a cluster, the shards of other nodes go on.
	unsettled := t.settle(ctx)
	if unsettled != nil && !t.s.conn.cluster {
		return unsettled
	}
	var streams []goredis.XStream
	var err error
	if t.s.conn.cluster {
		streams, err = t.look(ctx)
		if err == nil && len(streams) == 0 {
			t.pause(ctx, tailPause)
		}
	} else if streams, err = t.block(ctx); err != nil {
		t.doubtAll()
	}
	t.wake(ctx, streams)
	return errors.Join(unsettled, err)
}

// doubtShard says that something may be missed on a shard from now on. Who waits
// there is woken, and finds out whether Redis is away.
func (t *tail) doubtShard(n int) {
	if !t.doubt[n] {
		t.doubt[n] = true
		t.s.places.forget() // by a new connection another server may answer
		t.wakeShard(n)
	}
}

func (t *tail) doubtAll() {
	for n := range t.doubt {
		t.doubtShard(n)
	}
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
	var at []int
	var cmds []*goredis.XStreamSliceCmd
	for n, sh := range t.s.shards {
		if !t.doubt[n] {
			at = append(at, n)
			cmds = append(cmds, goredis.NewXStreamSliceCmd(ctx, "xread", "count", tailCount, "streams", sh.feed(), t.last[n]))
		}
	}
	if err := t.s.conn.stream.pipeline(ctx, asCmders(cmds)...); err != nil {
		t.doubtAll()
		return nil, err
	}
	var all []goredis.XStream
	var errs []error
	for i, cmd := range cmds {
		streams, err := cmd.Result()
		if err != nil && !errors.Is(err, goredis.Nil) {
			errs = append(errs, err)
			t.doubtShard(at[i])
		}
		all = append(all, streams...)
	}
	return all, errors.Join(errs...)
}

// wake wakes whom entries are about, and everybody on a shard where entries may
// have been trimmed before they were read.
func (t *tail) wake(ctx context.Context, streams []goredis.XStream) {
	var at []int
	var cmds []*goredis.XMessageSliceCmd
	for _, st := range streams {
		n, ok := t.feeds[st.Stream]
		if !ok || len(st.Messages) == 0 {
			continue
		}
		if t.wakeSome(n, st.Messages) && t.last[n] != "0-0" {
			at = append(at, n)
			cmds = append(cmds, goredis.NewXMessageSliceCmd(ctx, "xrange", st.Stream, t.last[n], t.last[n]))
		}
		t.moveTo(n, st.Messages[len(st.Messages)-1].ID)
	}
	// Trimming takes the oldest: where the one read before is still there, none
	// after it has gone.
	err := t.s.conn.stream.pipeline(ctx, asCmders(cmds)...)
	for i, n := range at {
		if err != nil || cmds[i].Err() != nil || len(cmds[i].Val()) == 0 {
			t.wakeShard(n)
		}
	}
}

// wakeSome wakes the readers of a shard and the waiters for sessions that
// entries are about. It says whether others wait on the shard, too.
func (t *tail) wakeSome(n int, entries []goredis.XMessage) bool {
	for _, m := range entries {
		t.rememberEntry(n, m)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.readers {
		r.dirty(n)
	}
	if t.s.opts.Changed != nil {
		for _, m := range entries {
			id, _ := m.Values["s"].(string)
			t.s.opts.Changed(id)
		}
	}
	if len(t.waiters[n]) == 0 {
		return false
	}
	for _, m := range entries {
		id, _ := m.Values["s"].(string)
		signal(t.waiters[n][id])
	}
	return true
}

// rememberEntry remembers which session an entry is about, and its end where the entry
// reports that.
func (t *tail) rememberEntry(n int, m goredis.XMessage) {
	id, _ := m.Values["s"].(string)
	if at, err := storage.ParseCursor("feed", m.ID); err == nil {
		t.recent.add(n, at.Millis, id)
	}
	kind, _ := m.Values["L"].(string)
	if ending, ok := endingOf[kind]; ok {
		at, _ := m.Values["n"].(string)
		reason, _ := m.Values["r"].(string)
		t.s.remember(id, ending, number(at), reason)
	}
}

// rewind makes the readers of a shard, or of all where that is negative, read again
// from a place in its feed on.
func (t *tail) rewind(shard int, to storage.Cursor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.readers {
		r.rewind(shard, to)
	}
}

// wakeShard wakes everybody on a shard.
func (t *tail) wakeShard(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.readers {
		r.dirty(n)
	}
	for _, some := range t.waiters[n] {
		signal(some)
	}
}

func signal(waiters map[chan struct{}]struct{}) {
	for ch := range waiters {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
