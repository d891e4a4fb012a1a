package journal

import (
	"context"
	"errors"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Get reads a session.
func (s *Store) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	for s.holds(id) {
		if out, age, ok := s.peek(ctx, id); ok {
			s.opts.Stale(ctx, age)
			return out.Session, out.Err
		}
	}
	return s.Store.Get(ctx, id)
}

// peek reads a session that has writes waiting, and how old the knowledge is
// that they are built on; false when it left meanwhile.
func (s *Store) peek(ctx context.Context, id string) (storage.SessionResult, time.Duration, bool) {
	q := s.waiting.of(id)
	if q == nil {
		return storage.SessionResult{}, 0, false
	}
	sess, err := s.shadow.Get(ctx, id)
	if s.waiting.of(id) != q {
		return storage.SessionResult{}, 0, false
	}
	return storage.SessionResult{Session: sess, Err: err}, s.age(q), true
}

func (s *Store) age(q *queue) time.Duration {
	return max(0, s.now().Sub(s.waiting.first(q).write.At))
}

// GetMany reads sessions.
func (s *Store) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	if s.depth.Load() == 0 {
		return s.Store.GetMany(ctx, ids)
	}
	out := make([]storage.SessionResult, len(ids))
	var ask []string
	var places []int
	oldest, stale := time.Duration(0), false
	for i, id := range ids {
		if r, age, ok := s.peek(ctx, id); ok {
			out[i] = r
			oldest, stale = max(oldest, age), true
			continue
		}
		ask, places = append(ask, id), append(places, i)
	}
	if len(ask) > 0 {
		res, err := s.Store.GetMany(ctx, ask)
		if err != nil && !errors.Is(err, storage.ErrUnavailable) {
			return nil, err
		}
		for j, i := range places {
			if err != nil {
				out[i].Err = err
			} else {
				out[i] = res[j]
			}
		}
	}
	if stale {
		s.opts.Stale(ctx, oldest)
	}
	return out, nil
}

// ListEvents pages through a session's log. Of one that has writes waiting, what
// was appended before is asked of the store underneath; where that cannot
// answer, the page says that events may be missing.
func (s *Store) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	until := s.opts.Clock().Add(q.Wait)
	for s.holds(q.SessionID) {
		queue := s.waiting.of(q.SessionID)
		if queue == nil {
			break
		}
		page, err := s.pending(ctx, q, queue)
		if s.waiting.of(q.SessionID) != queue {
			// What woke the wait may be that the session left: the store underneath
			// has the same events.
			q.Wait = max(0, until.Sub(s.opts.Clock()))
			continue
		}
		s.opts.Stale(ctx, s.age(queue))
		return page, err
	}
	return s.Store.ListEvents(ctx, q)
}

// pending pages through the log of a session that has writes waiting.
func (s *Store) pending(ctx context.Context, q storage.EventQuery, queue *queue) (storage.EventPage, error) {
	first := s.waiting.first(queue)
	start, err := storage.ParseCursor("start", first.start)
	if err != nil || first.write.Create != nil {
		return s.shadow.ListEvents(ctx, q)
	}
	if q.Tail > 0 {
		page, err := s.shadow.ListEvents(ctx, q)
		if err != nil || len(page.Events) == q.Tail {
			return page, err
		}
		rest, err := s.Store.ListEvents(ctx, q)
		if err != nil {
			page.Truncated = true
			return page, nil //nolint:nilerr // the page says so
		}
		all := append(s.others(ctx, q.SessionID, first.start, upTo(rest.Events, start)), page.Events...)
		page.Events = all[max(0, len(all)-q.Tail):]
		return page, nil
	}
	after, err := storage.ParseCursor("after", q.After)
	if err != nil {
		return storage.EventPage{}, err
	}
	if after.Compare(start) >= 0 {
		return s.shadow.ListEvents(ctx, q)
	}
	now, truncated := q, false
	now.Wait = 0
	for {
		page, err := s.Store.ListEvents(ctx, now)
		if err != nil {
			page, err = s.shadow.ListEvents(ctx, q)
			page.Truncated = true
			return page, err
		}
		truncated = truncated || page.Truncated
		before := upTo(page.Events, start)
		more := page.More && len(before) == len(page.Events)
		if page.Events = s.others(ctx, q.SessionID, first.start, before); len(page.Events) > 0 {
			page.Next, page.More, page.Over = page.Events[len(page.Events)-1].GetCursor(), true, false
			page.Truncated = truncated
			return page, nil
		}
		if !more {
			if truncated {
				q.Wait = 0
			}
			next := page.Next
			page, err := s.shadow.ListEvents(ctx, q)
			if truncated {
				page.Truncated = true
				if len(page.Events) == 0 {
					page.Next = next
				}
			}
			return page, err
		}
		now.After = page.Next
	}
}

// others returns those of a session's events that do not wait here as well.
// What was applied although its answer was lost is told from here alone, under
// the cursor that its caller was told.
func (s *Store) others(ctx context.Context, id, start string, events []*sessionv1.Event) []*sessionv1.Event {
	if len(events) == 0 {
		return events
	}
	here, err := s.shadow.ListEvents(context.WithoutCancel(ctx), storage.EventQuery{SessionID: id, After: start, Limit: 1 << 30})
	if err != nil {
		return events
	}
	waits := make(map[string]struct{}, len(here.Events))
	for _, e := range here.Events {
		waits[e.GetId()] = struct{}{}
	}
	out := make([]*sessionv1.Event, 0, len(events))
	for _, e := range events {
		if _, ok := waits[e.GetId()]; !ok {
			out = append(out, e)
		}
	}
	return out
}

// upTo returns those of a page's events that come before what was accepted
// here.
func upTo(events []*sessionv1.Event, start storage.Cursor) []*sessionv1.Event {
	for i, e := range events {
		if at, err := storage.ParseCursor("cursor", e.GetCursor()); err != nil || at.Compare(start) > 0 {
			return events[:i:i]
		}
	}
	return events[:len(events):len(events)]
}

// Explain tells what became of a session's activity, of which only the store
// underneath knows all.
func (s *Store) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	out, err := s.Store.Explain(ctx, id)
	if errors.Is(err, storage.ErrNotFound) && s.holds(id) {
		return storage.Explanation{}, unavailable(errWaiting)
	}
	return out, err
}
