package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Append appends events to a session's log and to the feed, in one script.
func (s *Store) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	return s.append(ctx, sh, id, events, present)
}

func (s *Store) append(ctx context.Context, sh *shard, id string, events []*sessionv1.Event, at asOf) ([]string, error) {
	if err := s.checkRevived(ctx, sh, id); err != nil {
		return nil, err
	}
	sc := s.scripts.append
	call := sc.declare(sh, id, sc.required, 2+4*len(events))
	if at != present {
		call = call.and(sh.key(keyReplayed, ""))
	}
	call = call.with(id, at.arg())
	for _, e := range events {
		log, err1 := storage.WithCursor(e, "").MarshalVT()
		feed, err2 := storage.FeedEvent(e, false).MarshalVT()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		call = call.with(e.GetId(), log, feed)
		if at != present {
			call = call.with(told(e.GetCursor()))
		}
	}
	r, err := s.run(ctx, call)
	if err := s.confirm(ctx, sh, check(r, err)); err != nil {
		return nil, err
	}
	cursors := make([]string, len(events))
	for i := range cursors {
		cursors[i] = r.text(i + 1)
	}
	return cursors, nil
}

// entry decodes an entry of a log or a feed: a client's event as it was
// encoded, or one of the store's own from its numbers.
func entry(m goredis.XMessage) (*sessionv1.Event, bool, error) {
	text := func(k string) string {
		v, _ := m.Values[k].(string)
		return v
	}
	num := func(k string) int64 {
		n, _ := strconv.ParseInt(text(k), 10, 64)
		return n
	}
	if kind := text("L"); kind != "" {
		return storage.Lifecycle{
			Type: kind, At: num("n"), Expire: num("x"), Count: int32(num("c")),
			Before: num("b"), Max: int32(num("m")), ActivityTime: num("a"),
			ActivityKind: text("k"), CauseEventID: text("i"), Traceparent: text("p"), Reason: text("r"),
		}.Event(), true, nil
	}
	e := &sessionv1.Event{}
	if err := proto.Unmarshal([]byte(text("e")), e); err != nil {
		return nil, false, fmt.Errorf("stored event %s: %w", m.ID, err)
	}
	return e, false, nil
}

// ListEvents pages through a session's log.
func (s *Store) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	after := storage.Cursor{}
	if q.Tail == 0 {
		var err error
		if after, err = storage.ParseCursor("after", q.After); err != nil {
			return storage.EventPage{}, err
		}
	}
	sh := s.shardOf(q.SessionID)
	if sh == nil {
		return storage.EventPage{}, storage.ErrNotFound
	}
	wait := q.Wait > 0 && q.Tail == 0
	var news <-chan struct{}
	var deadline <-chan time.Time
	if wait {
		// Subscribed before the first look, so that nothing slips in between.
		var leave func()
		news, leave = s.tail.subscribe(sh.n, q.SessionID)
		defer leave()
		t := time.NewTimer(q.Wait)
		defer t.Stop()
		deadline = t.C
	}
	found := false
	for {
		if err := s.usable(ctx); err != nil {
			return storage.EventPage{}, err
		}
		page, err := s.page(ctx, sh, q, after)
		switch {
		case errors.Is(err, storage.ErrNotFound) && found:
			// Deleted while we waited: nothing will follow.
			return storage.EventPage{Next: spell(after), Over: true}, nil
		case err != nil, len(page.Events) > 0, page.Over, page.Truncated, !wait:
			return page, err
		}
		found = true
		select {
		case <-news:
		case <-deadline:
			wait = false
		case <-s.closed:
		case <-ctx.Done():
		}
	}
}

// pageReads bounds how often a page is read anew while its session's slot moves
// and its log is trimmed at the same time.
const pageReads = 3

// page reads the session's state and its log as of one moment, in one round trip.
func (s *Store) page(ctx context.Context, sh *shard, q storage.EventQuery, after storage.Cursor) (storage.EventPage, error) {
	ctx, end := s.span(ctx, "list_events")
	// The state is read first: when it says over, the log is complete.
	state, log := s.pageCommands(ctx, sh, q, after)
	cmds, epoch := []goredis.Cmder{state, log}, s.places.epoch.Load()
	x, ended := s.endings.get(q.SessionID) // before the look: where that finds it live, its end was lost
	place := s.placeCommand(ctx, sh, q, after, epoch)
	if place != nil {
		cmds = append(cmds, place)
	}
	ordered, err := s.conn.read.inOrder(ctx, cmds...)
	if err == nil && !ordered {
		state, log, err = s.pageOnTheMove(ctx, sh, q, after)
	}
	if err == nil && place != nil {
		err = failure(place.Err())
	}
	if err == nil {
		err = failure(errors.Join(state.Err(), log.Err()))
	}
	end(err)
	if err != nil {
		return storage.EventPage{}, err
	}
	if state.Val()[0] == nil {
		return storage.EventPage{}, s.confirm(ctx, sh, storage.ErrNotFound)
	}
	st, err := stateOf(state, x, ended)
	if err != nil {
		return storage.EventPage{}, err
	}
	page, err := decodePage(q, after, log.Val(), st, state.Val())
	switch {
	case err != nil, q.Tail > 0:
	case place != nil && len(place.Val()) == 0 && !page.Truncated:
		return s.pageWithout(ctx, sh, q, after, page)
	case len(page.Events) > 0:
		last, _ := storage.ParseCursor("next", page.Next)
		s.places.learn(q.SessionID, last, epoch)
	case place != nil:
		s.places.learn(q.SessionID, after, epoch)
	}
	return page, err
}

// stateOf is the state in the reply of a page's first command, or that of a session
// which was seen to end before.
func stateOf(state *goredis.SliceCmd, x ending, ended bool) (string, error) {
	st, _ := state.Val()[0].(string)
	switch {
	case !ended || st != "0":
		return st, nil
	case x.kind == endingDeleted:
		return "", storage.ErrNotFound
	default:
		return "1", nil
	}
}

func (s *Store) pageCommands(ctx context.Context, sh *shard, q storage.EventQuery, after storage.Cursor) (*goredis.SliceCmd, *goredis.XMessageSliceCmd) {
	state := goredis.NewSliceCmd(ctx, "hmget", sh.session(q.SessionID), "st", "trim", "gap")
	if q.Tail > 0 {
		return state, goredis.NewXMessageSliceCmd(ctx, "xrevrange", sh.events(q.SessionID), "+", "-", "count", q.Tail)
	}
	return state, goredis.NewXMessageSliceCmd(ctx, "xrange", sh.events(q.SessionID), "("+after.String(), "+", "count", q.Limit+1)
}

// pageOnTheMove reads the state, the log, and the state again, one after the
// other: while a slot moves, the two may be on different nodes. With nothing
// trimmed from the log between the two states, the first is that of the log.
func (s *Store) pageOnTheMove(ctx context.Context, sh *shard, q storage.EventQuery, after storage.Cursor) (*goredis.SliceCmd, *goredis.XMessageSliceCmd, error) {
	for range pageReads {
		before, log := s.pageCommands(ctx, sh, q, after)
		then, _ := s.pageCommands(ctx, sh, q, after)
		for _, cmd := range []goredis.Cmder{before, log, then} {
			if err := s.conn.read.do(ctx, cmd); err != nil {
				return nil, nil, failure(err)
			}
		}
		if before.Val()[1] == then.Val()[1] {
			return before, log, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: the log is trimmed faster than it can be read", storage.ErrUnavailable)
}

func decodePage(q storage.EventQuery, after storage.Cursor, entries []goredis.XMessage, st string, state []any) (storage.EventPage, error) {
	page := storage.EventPage{Next: spell(after)}
	if q.Tail > 0 {
		for i, j := 0, len(entries)-1; i < j; i, j = i+1, j-1 {
			entries[i], entries[j] = entries[j], entries[i]
		}
	} else {
		if page.More = len(entries) > q.Limit; page.More {
			entries = entries[:q.Limit]
		}
		if text, ok := state[1].(string); ok {
			trimmed, err := storage.ParseCursor("trim", text)
			page.Truncated = err == nil && after.Compare(trimmed) < 0
		}
	}
	for _, m := range entries {
		e, _, err := entry(m)
		if err != nil {
			return storage.EventPage{}, err
		}
		page.Events = append(page.Events, storage.WithCursor(e, m.ID))
		page.Next = m.ID
	}
	page.Truncated = page.Truncated || q.Tail == 0 && len(entries) > 0 && crossesGap(state[2], after, page.Next)
	page.Over = st != "0" && !page.More
	return page, nil
}

// spell is how a cursor is given back: "0" for the beginning.
func spell(c storage.Cursor) string {
	if c == (storage.Cursor{}) {
		return "0"
	}
	return c.String()
}

// feedEntry decodes an entry of a shard's feed.
func feedEntry(sh *shard, m goredis.XMessage) (*sessionv1.FeedEntry, error) {
	e, own, err := entry(m)
	if err != nil {
		return nil, err
	}
	at, err := storage.ParseCursor("feed", m.ID)
	if err != nil {
		return nil, err
	}
	id, _ := m.Values["s"].(string)
	return &sessionv1.FeedEntry{
		Shard: int32(sh.n), Cursor: m.ID, SessionId: id, Event: storage.FeedEvent(e, own), AppendTime: lifetime.Time(at.Millis),
	}, nil
}
