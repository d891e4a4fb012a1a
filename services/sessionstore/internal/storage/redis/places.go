package redis

import (
	"context"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// A cursor names an entry of its session's log, which leaves only by trimming, and the
// record says how far that went. So a later cursor that names no entry is from data
// that was lost. That is asked for with the page, in the same round trip, unless the
// cursor was found before: readers that wait at the end of a log cost nothing more.

// places remembers cursors that were found in their logs, as far as they do not
// displace each other. The zero value is ready for use.
type places struct {
	slots [1 << 14]atomic.Uint64
	epoch atomic.Uint64
}

var placeSeed = maphash.MakeSeed()

// forget makes every cursor be looked for again.
func (p *places) forget() { p.epoch.Add(1) }

// slot returns the slot of a cursor of a session, and what it holds where the cursor
// was found since the epoch.
func (p *places) slot(id string, at storage.Cursor, epoch uint64) (*atomic.Uint64, uint64) {
	h := maphash.String(placeSeed, id)
	slot := &p.slots[h%uint64(len(p.slots))]
	// Odd factors, so that neighbours in time differ.
	return slot, h ^ uint64(at.Millis)*0x9e3779b97f4a7c15 ^ (at.Seq+1)*0xc2b2ae3d27d4eb4f ^ epoch*0x165667b19e3779f9
}

func (p *places) known(id string, at storage.Cursor, epoch uint64) bool {
	slot, h := p.slot(id, at, epoch)
	return slot.Load() == h
}

// learn remembers that a cursor was found.
func (p *places) learn(id string, at storage.Cursor, epoch uint64) {
	slot, h := p.slot(id, at, epoch)
	if slot.Load() != h {
		slot.Store(h)
	}
}

// placeCommand asks for the entry that a reader's cursor names, nil where it need not
// be asked for.
func (s *Store) placeCommand(ctx context.Context, sh *shard, q storage.EventQuery, after storage.Cursor, epoch uint64) *goredis.XMessageSliceCmd {
	if q.Tail > 0 || after == (storage.Cursor{}) || s.places.known(q.SessionID, after, epoch) {
		return nil
	}
	return goredis.NewXMessageSliceCmd(ctx, "xrange", sh.events(q.SessionID), after.String(), after.String())
}

// pageWithout returns the page for a cursor that names no entry of its log. In a gap,
// all that is there from before the gap's begin on may be new to the reader: events
// that were replayed have cursors of then. It is truncated, and its next cursor is one
// that the log has.
func (s *Store) pageWithout(ctx context.Context, sh *shard, q storage.EventQuery, after storage.Cursor, page storage.EventPage) (storage.EventPage, error) {
	g, lost := s.past.gapOf(sh, after)
	if !lost {
		return s.pageAhead(ctx, sh, q, after, page)
	}
	from := g.before()
	x, ended := s.endings.get(q.SessionID)
	state, log := s.pageCommands(ctx, sh, q, from)
	last := lastCommand(ctx, sh, q.SessionID, from)
	ordered, err := s.conn.read.inOrder(ctx, state, log, last)
	if err != nil {
		return storage.EventPage{}, err
	}
	if !ordered {
		return storage.EventPage{}, errMovingLog
	}
	for _, cmd := range []goredis.Cmder{state, log, last} {
		if err := cmd.Err(); err != nil {
			return storage.EventPage{}, failure(err)
		}
	}
	st, err := stateOf(state, x, ended)
	if err != nil {
		return storage.EventPage{}, err
	}
	out, err := decodePage(q, from, log.Val(), st, state.Val())
	if err != nil {
		return storage.EventPage{}, err
	}
	out.Truncated = true
	if len(out.Events) == 0 {
		out.Next = endOf(last.Val())
	}
	return out, nil
}

var errMovingLog = fmt.Errorf("%w: the slot of the log is moving", storage.ErrUnavailable)

// pageAhead returns the page for a cursor that names no entry of its log and lies in no
// gap that is known. After the end of the log it is from a loss all the same, unless a
// journal may still replay events up to there.
func (s *Store) pageAhead(ctx context.Context, sh *shard, q storage.EventQuery, after storage.Cursor, page storage.EventPage) (storage.EventPage, error) {
	if len(page.Events) > 0 {
		return page, nil
	}
	last := goredis.NewXMessageSliceCmd(ctx, "xrevrange", sh.events(q.SessionID), "+", "-", "count", 1)
	holds := goredis.NewMapStringStringCmd(ctx, "hgetall", sh.holds())
	if err := s.conn.read.pipeline(ctx, last, holds); err != nil {
		return storage.EventPage{}, err
	}
	for _, cmd := range []goredis.Cmder{last, holds} {
		if err := cmd.Err(); err != nil {
			return storage.EventPage{}, failure(err)
		}
	}
	for _, from := range holds.Val() {
		if ms, err := strconv.ParseInt(from, 10, 64); err == nil && ms <= after.Millis {
			return page, nil
		}
	}
	if len(last.Val()) == 0 {
		return page, nil // the session was deleted meanwhile
	}
	end, err := storage.ParseCursor("next", endOf(last.Val()))
	if err != nil || end.Compare(after) >= 0 { // it has grown meanwhile
		return page, err
	}
	page.Truncated, page.Next = true, spell(end)
	return page, nil
}

func lastCommand(ctx context.Context, sh *shard, id string, upTo storage.Cursor) *goredis.XMessageSliceCmd {
	return goredis.NewXMessageSliceCmd(ctx, "xrevrange", sh.events(id), upTo.String(), "-", "count", 1)
}

// endOf is the cursor of the last entry of a log, "0" for none.
func endOf(last []goredis.XMessage) string {
	if len(last) == 0 {
		return "0"
	}
	return last[0].ID
}
