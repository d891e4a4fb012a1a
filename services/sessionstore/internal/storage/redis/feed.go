package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// reader is one consumer's place in a group. It reads the shards it has a
// lease on; the group's progress on a shard is one cursor in Redis.
type reader struct {
	s        *Store
	group    string
	consumer string
	nonce    string
	ctx      context.Context //nolint:containedctx // the reader's own life
	cancel   context.CancelFunc
	signal   chan struct{} // buffered: a wake-up is never lost
	done     chan struct{}
	once     sync.Once

	mu      sync.Mutex
	shards  []int
	changed bool
	news    map[int]bool
	// delivered is how far each shard was handed out, also after its lease was
	// lost: what was delivered may still be acknowledged.
	delivered map[int]storage.Cursor
	// back is from where a shard is read again whose feed has lost entries: new ones
	// may come before what was delivered.
	back map[int]storage.Cursor
	turn int
}

// OpenFeed joins a group and takes the leases that are free.
func (s *Store) OpenFeed(ctx context.Context, group, consumer string) (storage.FeedReader, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if err := s.joinGroup(ctx, group); err != nil {
		return nil, err
	}
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails: crypto/rand ends the program instead
	r := &reader{
		s: s, group: group, consumer: consumer, nonce: hex.EncodeToString(nonce[:]),
		signal: make(chan struct{}, 1), done: make(chan struct{}),
		news: map[int]bool{}, delivered: map[int]storage.Cursor{}, back: map[int]storage.Cursor{},
	}
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.tail.join(r)
	if err := r.share(ctx, true); err != nil {
		return nil, errors.Join(err, r.Close()) //nolint:contextcheck // giving up must work after ctx has ended
	}
	go r.keep() //nolint:contextcheck // the reader outlives the call that opened it
	return r, nil
}

// joinGroup registers a group on every shard. One that does not answer now has the
// group with the first lease that is acquired on it: until then nothing of it is
// delivered.
func (s *Store) joinGroup(ctx context.Context, group string) error {
	calls := make([]invocation, len(s.shards))
	for i, sh := range s.shards {
		calls[i] = s.scripts.join.on(sh, "", group)
	}
	_, errs := s.runAll(ctx, "join", calls)
	return onlyAll(errs)
}

// onlyAll returns the failure of calls to many shards where all have failed, or
// one for another reason than that its shard cannot be reached now.
func onlyAll(errs []error) error {
	answered := false
	for _, err := range errs {
		answered = answered || err == nil
		if err != nil && !errors.Is(err, storage.ErrUnavailable) {
			return err
		}
	}
	if answered || len(errs) == 0 {
		return nil
	}
	return errs[0]
}

func (r *reader) assign(held []int, started map[int]storage.Cursor, opening bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, at := range started {
		r.delivered[n] = at
		r.news[n] = true
		delete(r.back, n)
	}
	if opening || !slices.Equal(r.shards, held) {
		r.shards, r.changed = held, true
	}
	r.wake()
}

func (r *reader) wake() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

// dirty says that a shard has something new.
func (r *reader) dirty(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.shards, n) {
		r.news[n] = true
		r.wake()
	}
}

// rewind reads a shard, or all where that is negative, again from a place on.
func (r *reader) rewind(shard int, to storage.Cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, at := range r.delivered {
		if (shard < 0 || n == shard) && to.Compare(at) < 0 {
			r.back[n] = to
			r.news[n] = true
		}
	}
	r.wake()
}

// advance notes that an entry of a shard was delivered. The caller holds r.mu.
func (r *reader) advance(n int, to storage.Cursor) {
	if _, again := r.back[n]; again && to.Compare(r.delivered[n]) <= 0 {
		r.back[n] = to
		return
	}
	delete(r.back, n)
	r.delivered[n] = to
}

// place is from where a shard is read on. The caller holds r.mu.
func (r *reader) place(n int) storage.Cursor {
	if at, again := r.back[n]; again {
		return at
	}
	return r.delivered[n]
}

func (r *reader) dirtyAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.shards {
		r.news[n] = true
	}
	r.wake()
}

// Next blocks until there is something to tell.
func (r *reader) Next(ctx context.Context, limit int) (storage.FeedBatch, error) {
	for {
		select {
		case <-r.done:
			return storage.FeedBatch{}, storage.ErrClosed
		case <-r.s.closed:
			return storage.FeedBatch{}, storage.ErrClosed
		default:
		}
		b, err := r.take(ctx, limit)
		if err != nil || b.Changed || len(b.Entries) > 0 {
			return b, err
		}
		select {
		case <-r.signal:
		case <-r.done:
		case <-r.s.closed:
		case <-ctx.Done():
			return storage.FeedBatch{}, ctx.Err()
		}
	}
}

// takeAtOnce is how many shards one look asks.
const takeAtOnce = 16

// take reads the shards that have something new, in turn, in one round trip.
func (r *reader) take(ctx context.Context, limit int) (storage.FeedBatch, error) {
	r.mu.Lock()
	b := storage.FeedBatch{Changed: r.changed}
	if r.changed {
		b.Shards, r.changed = slices.Clone(r.shards), false
	}
	var look []int
	for range r.shards {
		if len(look) == min(takeAtOnce, limit) {
			r.wake() // the rest waits for the next call
			break
		}
		n := r.shards[r.turn%len(r.shards)]
		r.turn++
		if r.news[n] {
			look = append(look, n)
			delete(r.news, n) // before the look: what comes after it is news again
		}
	}
	from := make([]storage.Cursor, len(look))
	for i, n := range look {
		from[i] = r.place(n)
	}
	r.mu.Unlock()
	if len(look) == 0 {
		return b, nil
	}
	each := limit / len(look)
	cmds := make([]*goredis.XMessageSliceCmd, len(look))
	for i, n := range look {
		cmds[i] = goredis.NewXMessageSliceCmd(ctx, "xrange", r.s.shards[n].feed(), "("+from[i].String(), "+", "count", each)
	}
	left := r.s.conn.stream.pipeline(ctx, asCmders(cmds)...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if left != nil {
		for _, n := range look {
			r.news[n] = true
		}
		return b, left
	}
	var errs []error
	for i, n := range look {
		if err := failure(cmds[i].Err()); err != nil {
			errs = append(errs, err)
			r.news[n] = true
			continue
		}
		if len(cmds[i].Val()) == each {
			r.news[n] = true
			r.wake()
		}
		if r.place(n) != from[i] || !slices.Contains(r.shards, n) {
			continue // the lease changed hands meanwhile
		}
		for _, m := range cmds[i].Val() {
			e, err := feedEntry(r.s.shards[n], m)
			if err != nil {
				return b, err
			}
			b.Entries = append(b.Entries, e)
			at, _ := storage.ParseCursor("feed", m.ID)
			r.advance(n, at)
		}
	}
	if len(b.Entries) == 0 && !b.Changed {
		return b, errors.Join(errs...)
	}
	if len(errs) > 0 {
		r.wake()
	}
	return b, nil
}

// Ack moves the group's cursors forward.
func (r *reader) Ack(ctx context.Context, acks []storage.FeedAck) error {
	if err := r.s.usable(ctx); err != nil {
		return err
	}
	calls := make([]invocation, 0, len(acks))
	for _, a := range acks {
		at, err := storage.ParseCursor("acks.cursor", a.Cursor)
		if err != nil {
			return err
		}
		r.mu.Lock()
		delivered, ok := r.delivered[a.Shard]
		place := r.place(a.Shard)
		r.mu.Unlock()
		if !ok {
			return &storage.InvalidError{Field: "acks.shard", Want: "a shard that this stream delivered"}
		}
		if at.Compare(delivered) > 0 {
			return &storage.InvalidError{Field: "acks.cursor", Value: storage.Shorten(a.Cursor), Want: "a cursor that this stream delivered"}
		}
		if place.Compare(at) < 0 {
			at = place // what came after was lost, and what comes after is not delivered yet
		}
		calls = append(calls, r.s.scripts.ack.on(r.s.shards[a.Shard], "", r.group, at.String()))
	}
	_, errs := r.s.runAll(ctx, "ack", calls)
	return errors.Join(errs...)
}

// Close gives the leases up at once, so that others need not wait for them to
// run out.
func (r *reader) Close() error {
	r.shut()
	if !r.s.tail.part(r) {
		return nil // closed before
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), r.s.opts.Timeout)
	defer cancel()
	r.mu.Lock()
	mine := slices.Clone(r.shards)
	r.mu.Unlock()
	_, _, err := r.lease(ctx, "release", mine)
	// The consumer's heartbeat goes, too, unless it is another reader's by now;
	// then that one beats again.
	drop := goredis.NewIntCmd(ctx, "zrem", r.s.shards[0].key(keyConsumers, r.group), r.consumer)
	if errors.Is(err, storage.ErrClosed) {
		return nil
	}
	return errors.Join(err, failure(r.s.conn.free.do(ctx, drop)))
}

// shut ends Next and the renewals.
func (r *reader) shut() {
	r.once.Do(func() {
		close(r.done)
		r.cancel()
	})
}

// Groups tells how far each group has come on each shard.
func (s *Store) Groups(ctx context.Context) ([]storage.GroupState, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	groups := make([]*goredis.MapStringStringCmd, len(s.shards))
	for i, sh := range s.shards {
		groups[i] = goredis.NewMapStringStringCmd(ctx, "hgetall", sh.groups())
	}
	if err := s.conn.stream.pipeline(ctx, asCmders(groups)...); err != nil {
		return nil, err
	}
	type question struct {
		n      int
		group  string
		first  *goredis.XMessageSliceCmd
		holder *goredis.StringCmd
	}
	var asked []question
	var cmds []goredis.Cmder
	for i, sh := range s.shards {
		if err := groups[i].Err(); err != nil {
			return nil, failure(err)
		}
		for g, acked := range groups[i].Val() {
			q := question{
				i, g, goredis.NewXMessageSliceCmd(ctx, "xrange", sh.feed(), "("+acked, "+", "count", lagCount),
				goredis.NewStringCmd(ctx, "get", sh.lease(g)),
			}
			asked, cmds = append(asked, q), append(cmds, q.first, q.holder)
		}
	}
	if err := s.conn.stream.pipeline(ctx, cmds...); err != nil {
		return nil, err
	}
	now := s.now()
	var out []storage.GroupState
	for _, q := range asked {
		if err := q.first.Err(); err != nil {
			return nil, failure(err)
		}
		st := storage.GroupState{Group: q.group, Shard: q.n, Watermark: lifetime.Time(now).AsTime()}
		st.Consumer, _, _ = strings.Cut(q.holder.Val(), " ")
		if m := q.first.Val(); len(m) > 0 {
			at, err := storage.ParseCursor("feed", m[0].ID)
			if err != nil {
				return nil, err
			}
			st.Watermark, st.Pending = lifetime.Time(at.Millis).AsTime(), int64(len(m))
		}
		out = append(out, st)
	}
	return out, nil
}

// lagCount bounds how many entries are looked at to count a group's lag on a
// shard; more counts as this many.
const lagCount = 1000
