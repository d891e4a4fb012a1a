package memory

import (
	"context"
	"slices"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// eventLog is the log of one session, guarded by its shard's lock. Stored
// events are immutable.
type eventLog struct {
	events []entry
	ids    map[string]storage.Cursor
	last   storage.Cursor
	// trimmed is the cursor of the last event that is no longer kept.
	trimmed storage.Cursor
	// wake is closed and dropped when there is something new; nil while nobody
	// waits.
	wake chan struct{}
}

type entry struct {
	at    storage.Cursor
	event *sessionv1.Event
}

// next is the cursor after last at a time: cursors only ever grow, whatever
// the clock does.
func next(last storage.Cursor, now int64) storage.Cursor {
	if now > last.Millis {
		return storage.Cursor{Millis: now}
	}
	return storage.Cursor{Millis: last.Millis, Seq: last.Seq + 1}
}

// append stores an event at the end.
func (l *eventLog) append(e *sessionv1.Event, now int64, most int) *sessionv1.Event {
	return l.appendAt(e, next(l.last, now), most)
}

func (l *eventLog) appendAt(e *sessionv1.Event, at storage.Cursor, most int) *sessionv1.Event {
	e = storage.WithCursor(e, at.String())
	l.put(at, e, most)
	return e
}

// put stores an event that has its cursor, and drops the oldest beyond most.
func (l *eventLog) put(at storage.Cursor, e *sessionv1.Event, most int) {
	l.last = at
	l.events = append(l.events, entry{at, e})
	if l.ids == nil {
		l.ids = map[string]storage.Cursor{}
	}
	l.ids[e.GetId()] = at
	if drop := len(l.events) - most; drop > 0 {
		for _, old := range l.events[:drop] {
			if l.ids[old.event.GetId()] == old.at {
				delete(l.ids, old.event.GetId())
			}
			l.trimmed = old.at
		}
		clear(l.events[:drop]) // the array stays, the messages go
		l.events = l.events[drop:]
	}
}

// after returns the index of the first event after a cursor.
func (l *eventLog) after(c storage.Cursor) int {
	i, found := slices.BinarySearchFunc(l.events, c, func(e entry, c storage.Cursor) int { return e.at.Compare(c) })
	if found {
		i++
	}
	return i
}

func (l *eventLog) waiter() <-chan struct{} {
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return l.wake
}

func (l *eventLog) wakeAll() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// Append appends events to a session's log and to the feed.
func (s *Store) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	return s.append(ctx, id, events, s.moment())
}

func (s *Store) append(ctx context.Context, id string, events []*sessionv1.Event, m moment) ([]string, error) {
	if err := s.writable(ctx); err != nil {
		return nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, storage.ErrNotFound
	}
	sh.mu.Lock()
	x, err := sh.live(id, m.at)
	if err != nil {
		sh.mu.Unlock()
		return nil, err
	}
	cursors := make([]string, len(events))
	tx := s.begin(sh)
	fresh := false
	for i, e := range events {
		if at, ok := x.log.ids[e.GetId()]; ok {
			cursors[i] = at.String()
			continue
		}
		stored := x.log.appendAt(e, m.cursor(x.log.last, e), s.opts.MaxEvents)
		cursors[i] = stored.GetCursor()
		tx.event(x, stored)
		s.publish(tx, id, storage.FeedEvent(e, false), m.now)
		fresh = true
	}
	if m.replayed && fresh && !s.opts.NoFeed {
		sh.feed.delayed(m.at)
		tx.late(sh)
	}
	x.log.wakeAll()
	// An event that was there already may still be on its way to the disk.
	return cursors, s.commitAfter(ctx, tx, s.lastWrite())
}

// ListEvents pages through a session's log.
func (s *Store) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	var after storage.Cursor
	if q.Tail == 0 {
		var err error
		if after, err = storage.ParseCursor("after", q.After); err != nil {
			return storage.EventPage{}, err
		}
	}
	var timeout <-chan time.Time
	if q.Wait > 0 {
		t := time.NewTimer(q.Wait)
		defer t.Stop()
		timeout = t.C
	}
	found := false
	for {
		if err := s.usable(ctx); err != nil {
			return storage.EventPage{}, err
		}
		page, wake, err := s.page(q, after)
		if err != nil {
			if found && err == storage.ErrNotFound { //nolint:errorlint // the bare sentinel of this very package
				// Deleted while we waited: nothing will follow.
				return storage.EventPage{Next: spell(after), Over: true}, nil
			}
			return storage.EventPage{}, err
		}
		if len(page.Events) > 0 || page.Over || q.Wait <= 0 || q.Tail > 0 {
			return page, nil
		}
		found = true
		select {
		case <-wake:
		case <-timeout:
			return page, nil
		case <-s.closed:
		case <-ctx.Done():
		}
	}
}

// page reads what is there now, and returns what to wait on.
func (s *Store) page(q storage.EventQuery, after storage.Cursor) (storage.EventPage, <-chan struct{}, error) {
	sh := s.shardOf(q.SessionID)
	if sh == nil {
		return storage.EventPage{}, nil, storage.ErrNotFound
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	x := sh.sessions[q.SessionID]
	if x == nil {
		return storage.EventPage{}, nil, storage.ErrNotFound
	}
	l := &x.log
	var first, last int
	if q.Tail > 0 {
		first, last = max(0, len(l.events)-q.Tail), len(l.events)
	} else {
		first = l.after(after)
		last = min(len(l.events), first+q.Limit)
	}
	page := storage.EventPage{
		More:      last < len(l.events),
		Truncated: q.Tail == 0 && after.Compare(l.trimmed) < 0,
		Next:      spell(after),
	}
	if last > first {
		page.Events = make([]*sessionv1.Event, 0, last-first)
		for _, e := range l.events[first:last] {
			page.Events = append(page.Events, e.event)
		}
		page.Next = page.Events[len(page.Events)-1].GetCursor()
	}
	page.Over = x.over != sessionv1.Session_PHASE_UNSPECIFIED && !page.More
	if len(page.Events) > 0 || page.Over || q.Wait <= 0 {
		return page, nil, nil
	}
	return page, l.waiter(), nil
}

// spell is how a cursor is given back: "0" for the beginning.
func spell(c storage.Cursor) string {
	if c == (storage.Cursor{}) {
		return "0"
	}
	return c.String()
}
