package redis

import (
	"cmp"
	"context"
	"errors"
	"slices"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// settle ends the doubt about shards: it finds the end of their feeds, and wakes
// everybody there. A feed may end before what was seen of it, where the server
// has lost that.
func (t *tail) settle(ctx context.Context) error {
	var at []int
	var ends, places []*goredis.XMessageSliceCmd
	for n, doubt := range t.doubt {
		if doubt {
			feed, from := t.s.shards[n].feed(), t.last[n]
			if from == "" {
				from = "0-0"
			}
			at = append(at, n)
			ends = append(ends, goredis.NewXMessageSliceCmd(ctx, "xrevrange", feed, "+", "-", "count", 1))
			places = append(places, goredis.NewXMessageSliceCmd(ctx, "xrevrange", feed, from, "-", "count", 1))
		}
	}
	if len(at) == 0 {
		return nil
	}
	if err := t.s.usable(ctx); err != nil {
		return err
	}
	if err := t.s.conn.stream.pipeline(ctx, slices.Concat(asCmders(ends), asCmders(places))...); err != nil {
		return err
	}
	var errs []error
	suspected := false
	for i, n := range at {
		if err := cmp.Or(ends[i].Err(), places[i].Err()); err != nil {
			errs = append(errs, err)
			continue
		}
		suspected = t.compare(n, places[i].Val()) || suspected
		end := "0-0"
		if m := ends[i].Val(); len(m) > 0 {
			end = m[0].ID
		}
		if t.last[n] == "" || before(end, t.last[n]) {
			t.moveTo(n, end)
		}
		t.doubt[n] = false
		t.wakeShard(n)
	}
	if suspected {
		errs = append(errs, t.s.past.look(ctx))
	}
	return errors.Join(errs...)
}

// compare looks whether the entry of a feed that was seen last is gone while earlier
// ones are there. Trimming takes the oldest, so the server has lost it.
func (t *tail) compare(n int, place []goredis.XMessage) (lost bool) {
	if t.last[n] == "" || len(place) == 0 || place[0].ID == t.last[n] {
		return false
	}
	left, err1 := storage.ParseCursor("feed", place[0].ID)
	seen, err2 := storage.ParseCursor("feed", t.last[n])
	if err1 != nil || err2 != nil {
		return false
	}
	t.s.past.suspect(n, left, seen)
	return true
}

// moveTo sets the last entry seen of a feed.
func (t *tail) moveTo(n int, id string) {
	t.last[n] = id
	if at, err := storage.ParseCursor("feed", id); err == nil {
		t.seen[n].Store(at.Millis)
	}
}

// before is the order of stream ids.
func before(a, b string) bool {
	x, err1 := storage.ParseCursor("feed", a)
	y, err2 := storage.ParseCursor("feed", b)
	return err1 == nil && err2 == nil && x.Compare(y) < 0
}
