package memory

import (
	"context"
	"slices"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// assign tells a reader its shards. A shard it did not have starts again at
// what its group has acknowledged.
func (r *reader) assign(shards []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(r.shards, shards) {
		return
	}
	delivered := map[int]storage.Cursor{}
	for _, n := range shards {
		if at, ok := r.delivered[n]; ok {
			delivered[n] = at
			continue
		}
		sh := r.store.shards[n]
		sh.mu.Lock()
		delivered[n] = sh.feed.acked[r.group]
		sh.mu.Unlock()
	}
	r.shards, r.delivered, r.changed = shards, delivered, true
	r.wake()
}

// Next blocks until there is something to tell.
func (r *reader) Next(ctx context.Context, limit int) (storage.FeedBatch, error) {
	for {
		select {
		case <-r.closed:
			return storage.FeedBatch{}, storage.ErrClosed
		default:
		}
		if b := r.take(limit); b.Changed || len(b.Entries) > 0 {
			return b, nil
		}
		select {
		case <-r.signal:
		case <-r.closed:
		case <-ctx.Done():
			return storage.FeedBatch{}, ctx.Err()
		}
	}
}

// take returns what is there now, in turn over the shards so that a busy one
// does not starve the rest.
func (r *reader) take(limit int) storage.FeedBatch {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := storage.FeedBatch{Changed: r.changed}
	if r.changed {
		b.Shards, r.changed = slices.Clone(r.shards), false
	}
	for range r.shards {
		if len(b.Entries) >= limit {
			r.wake() // the rest waits for the next call
			break
		}
		n := r.shards[r.turn%len(r.shards)]
		r.turn++
		sh := r.store.shards[n]
		sh.mu.Lock()
		from := sh.feed.after(r.delivered[n])
		to := min(len(sh.feed.entries), from+limit-len(b.Entries))
		for _, e := range sh.feed.entries[from:to] {
			b.Entries = append(b.Entries, e.entry)
			r.delivered[n] = e.at
		}
		if to < len(sh.feed.entries) {
			r.wake()
		}
		sh.mu.Unlock()
	}
	return b
}

// Ack moves the group's cursor forward.
func (r *reader) Ack(ctx context.Context, acks []storage.FeedAck) error {
	s := r.store
	if err := s.writable(ctx); err != nil {
		return err
	}
	for _, a := range acks {
		at, err := storage.ParseCursor("acks.cursor", a.Cursor)
		if err != nil {
			return err
		}
		if a.Shard < 0 || a.Shard >= len(s.shards) {
			return &storage.InvalidError{Field: "acks.shard", Want: "a shard that this stream delivered"}
		}
		sh := s.shards[a.Shard]
		sh.mu.Lock()
		if at.Compare(sh.feed.last) > 0 {
			sh.mu.Unlock()
			return &storage.InvalidError{Field: "acks.cursor", Value: storage.Shorten(a.Cursor), Want: "a cursor that this stream delivered"}
		}
		if at.Compare(sh.feed.acked[r.group]) <= 0 {
			sh.mu.Unlock()
			continue
		}
		sh.feed.acked[r.group] = at
		tx := s.begin(sh)
		tx.acked(r.group, at)
		// No wait for the disk: an acknowledgement that is lost makes an entry
		// come again, which is harmless.
		if _, err := s.write(tx); err != nil {
			return err
		}
	}
	return nil
}

// Close leaves the group.
func (r *reader) Close() error {
	f := &r.store.feeds
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.shut() {
		if g := f.groups[r.group]; g != nil {
			g.drop(r)
			r.store.share(r.group, g)
		}
	}
	return nil
}

// shut ends Next; it says whether this call did it.
func (r *reader) shut() (first bool) {
	r.once.Do(func() {
		close(r.closed)
		first = true
	})
	return first
}
