package memory

import (
	"context"
	"slices"
	"sync"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// keepFeed is how long after settle_max an entry is dropped even though a
	// group has not acknowledged it, in milliseconds.
	keepFeed = 3600_000
	// keepUngrouped is how many entries a shard keeps while no group reads it.
	keepUngrouped = 1000
)

// feed is the feed of one shard, guarded by its lock.
type feed struct {
	entries []feedEntry
	last    storage.Cursor
	// acked is how far each group has acknowledged.
	acked map[string]storage.Cursor
	// late says that entries up to a cursor were accepted at a time or later, and
	// came here after that.
	late late
	// readers hold this shard's leases, one for each group at most.
	readers []*reader
}

// late is zero where there is nothing of it.
type late struct {
	from int64
	to   storage.Cursor
}

type feedEntry struct {
	at    storage.Cursor
	entry *sessionv1.FeedEntry
}

// append adds an entry and wakes who reads the shard.
func (f *feed) append(shard int, now int64, id string, e *sessionv1.Event) *sessionv1.FeedEntry {
	at := next(f.last, now)
	entry := &sessionv1.FeedEntry{
		Shard: int32(shard), Cursor: at.String(), SessionId: id, Event: e, AppendTime: lifetime.Time(now),
	}
	f.put(at, entry)
	for _, r := range f.readers {
		r.wake()
	}
	return entry
}

func (f *feed) put(at storage.Cursor, entry *sessionv1.FeedEntry) {
	f.last = at
	f.entries = append(f.entries, feedEntry{at, entry})
}

// after returns the index of the first entry after a cursor.
func (f *feed) after(c storage.Cursor) int {
	i, found := slices.BinarySearchFunc(f.entries, c, func(e feedEntry, c storage.Cursor) int { return e.at.Compare(c) })
	if found {
		i++
	}
	return i
}

// watermarkOf is the append time of the first entry that a group has not
// acknowledged, now when there is none.
func (f *feed) watermarkOf(group string, now int64) int64 {
	if i := f.after(f.acked[group]); i < len(f.entries) {
		return f.entries[i].at.Millis
	}
	return now
}

// settled says up to when sessions may be swept: to where the activity group
// has come, and for ever when it has nothing left to read or never was.
// What was accepted long before it came into the feed takes it back.
func (f *feed) settled() int64 {
	if acked, ok := f.acked[storage.ActivityGroup]; ok {
		if i := f.after(acked); i < len(f.entries) {
			if acked.Compare(f.late.to) < 0 {
				return min(f.late.from, f.entries[i].at.Millis)
			}
			f.late = late{}
			return f.entries[i].at.Millis
		}
	}
	f.late = late{}
	return 1<<63 - 1
}

// delayed says that what came last was accepted at a time in the past.
func (f *feed) delayed(at int64) {
	if f.late.to == (storage.Cursor{}) || at < f.late.from {
		f.late.from = at
	}
	f.late.to = f.last
}

// feedHorizon is the time before which entries are dropped in any case.
func (s *Store) feedHorizon(now int64) int64 {
	return now - s.opts.SettleMax.Milliseconds() - keepFeed
}

// trim drops what every group has acknowledged, and everything before a time.
func (f *feed) trim(before int64) int {
	drop := len(f.entries)
	if len(f.acked) == 0 {
		drop = max(0, len(f.entries)-keepUngrouped)
	} else {
		for g := range f.acked {
			drop = min(drop, f.after(f.acked[g]))
		}
	}
	for drop < len(f.entries) && f.entries[drop].at.Millis < before {
		drop++
	}
	if drop > 0 {
		f.entries = slices.Clone(f.entries[drop:])
	}
	return drop
}

// feeds shares the shards out among the readers of each group.
type feeds struct {
	mu     sync.Mutex
	groups map[string]*group
}

type group struct {
	readers []*reader
	owners  []*reader // by shard
}

// reader is one consumer's place in a group.
type reader struct {
	store    *Store
	group    string
	consumer string
	signal   chan struct{} // buffered: a wake-up is never lost
	closed   chan struct{}
	once     sync.Once

	mu      sync.Mutex
	shards  []int
	changed bool
	// delivered is how far each leased shard was handed out.
	delivered map[int]storage.Cursor
	turn      int
}

func (r *reader) wake() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

// OpenFeed joins a group.
func (s *Store) OpenFeed(ctx context.Context, groupName, consumer string) (storage.FeedReader, error) {
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	if err := s.register(ctx, groupName); err != nil {
		return nil, err
	}
	r := &reader{
		store: s, group: groupName, consumer: consumer,
		signal: make(chan struct{}, 1), closed: make(chan struct{}), delivered: map[int]storage.Cursor{},
	}
	f := &s.feeds
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.groups[groupName]
	if g == nil {
		g = &group{owners: make([]*reader, len(s.shards))}
		f.groups[groupName] = g
	}
	for _, old := range slices.Clone(g.readers) {
		if old.consumer == consumer {
			g.drop(old)
			old.shut()
		}
	}
	g.readers = append(g.readers, r)
	s.share(groupName, g)
	return r, nil
}

// register makes a new group start at the oldest entry kept.
func (s *Store) register(ctx context.Context, name string) error {
	for _, sh := range s.shards {
		sh.mu.Lock()
		if _, ok := sh.feed.acked[name]; ok {
			sh.mu.Unlock()
			continue
		}
		sh.feed.acked[name] = storage.Cursor{}
		tx := s.begin(sh)
		tx.acked(name, storage.Cursor{})
		if err := s.commit(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}

func (g *group) drop(r *reader) {
	g.readers = slices.DeleteFunc(g.readers, func(x *reader) bool { return x == r })
}

// share gives each reader its fair part of the shards, moving as few as it
// can. f.mu must be held.
func (s *Store) share(name string, g *group) {
	if n := len(g.readers); n > 0 {
		quota := func(i int) int { return len(s.shards)/n + b2i(i < len(s.shards)%n) }
		left := map[*reader]int{}
		for i, r := range g.readers {
			left[r] = quota(i)
		}
		var free []int
		for shard, r := range g.owners {
			if left[r] > 0 {
				left[r]--
				continue
			}
			free = append(free, shard)
		}
		for _, r := range g.readers {
			for ; left[r] > 0; left[r]-- {
				g.owners[free[0]] = r
				free = free[1:]
			}
		}
	} else {
		clear(g.owners)
	}
	for shard, owner := range g.owners {
		s.shards[shard].lease(name, owner)
	}
	for _, r := range g.readers {
		var mine []int
		for shard, owner := range g.owners {
			if owner == r {
				mine = append(mine, shard)
			}
		}
		r.assign(mine)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lease makes r, which may be nil, the only reader of a group on the shard.
func (sh *shard) lease(group string, r *reader) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	readers := slices.DeleteFunc(slices.Clone(sh.feed.readers), func(x *reader) bool { return x.group == group })
	if r != nil {
		readers = append(readers, r)
	}
	sh.feed.readers = readers
}

func (f *feeds) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.groups {
		for _, r := range g.readers {
			r.shut()
		}
	}
}

// Groups tells how far each group has come.
func (s *Store) Groups(ctx context.Context) ([]storage.GroupState, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	now := s.now()
	f := &s.feeds
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []storage.GroupState
	for n, sh := range s.shards {
		// A reader's lock comes before a shard's.
		places := map[string]storage.Cursor{}
		for name, g := range f.groups {
			if r := g.owners[n]; r != nil {
				r.mu.Lock()
				places[name] = r.delivered[n]
				r.mu.Unlock()
			}
		}
		sh.mu.Lock()
		for name, acked := range sh.feed.acked {
			st := storage.GroupState{Group: name, Shard: n}
			unacked := int64(len(sh.feed.entries) - sh.feed.after(acked))
			st.Lag = unacked
			if g := f.groups[name]; g != nil && g.owners[n] != nil {
				st.Consumer = g.owners[n].consumer
				st.Lag = min(unacked, int64(len(sh.feed.entries)-sh.feed.after(places[name])))
			}
			st.Pending = unacked - st.Lag
			st.Watermark = lifetime.Time(sh.feed.watermarkOf(name, now)).AsTime()
			out = append(out, st)
		}
		sh.mu.Unlock()
	}
	return out, nil
}
