package storagetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

func ids(events []*sessionv1.Event) []string {
	var out []string
	for _, e := range events {
		if e.GetOrigin() != sessionv1.Event_SYSTEM {
			out = append(out, e.GetId())
		}
	}
	return out
}

// read lists a session's events after a cursor.
func (fx Fixture) read(t TB, q storage.EventQuery) storage.EventPage {
	t.Helper()
	if q.Limit == 0 {
		q.Limit = 100
	}
	p, err := fx.Store.ListEvents(t.Context(), q)
	ok(t, err)
	return p
}

func eventCases() []Case {
	return []Case{
		{"events/round trip in order", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			data, _ := structpb.NewValue(map[string]any{"text": "hellö", "deep": []any{map[string]any{"n": 1.0}, nil}})
			e := fx.event("one", "input:text")
			e.Subject, e.Data, e.Origin = "a subject", data, sessionv1.Event_SYSTEM
			e.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			cursors, err := fx.Store.Append(t.Context(), id, []*sessionv1.Event{e, fx.event("two", "step:started")})
			ok(t, err)
			p := fx.read(t, storage.EventQuery{SessionID: id, After: "0"})
			equal(t, "events", len(p.Events), 3)
			same(t, "stored", p.Events[1], storage.WithCursor(e, cursors[0]))
			equal(t, "second", p.Events[2].GetCursor(), cursors[1])
			equal(t, "next", p.Next, cursors[1])
			list(t, "tail", ids(fx.read(t, storage.EventQuery{SessionID: id, Tail: 1}).Events), "two")
			equal(t, "tail of all", len(fx.read(t, storage.EventQuery{SessionID: id, Tail: 10}).Events), 3)
			equal(t, "revision", fx.get(t, id).GetRevision(), 1)
		}},
		{"events/the same id is not stored twice", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			first := fx.append(t, id, "a", "b", "a")
			equal(t, "in one batch", first[0], first[2])
			again := fx.append(t, id, "b", "c", "a")
			equal(t, "b", again[0], first[1])
			equal(t, "a", again[2], first[0])
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { fx.append(t, id, "x", "y") })
			}
			wg.Wait()
			list(t, "log", ids(fx.read(t, storage.EventQuery{SessionID: id, After: "0"}).Events), "a", "b", "c", "x", "y")
			other := fx.create(t, "acme", "ann", long)
			fx.append(t, other, "a")
			list(t, "another session's log", ids(fx.read(t, storage.EventQuery{SessionID: other, After: "0"}).Events), "a")
		}},
		{"events/no gap and no duplicate under concurrent appends", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			const writers, each = 4, 4 // the log keeps 20
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for n := range each {
						fx.append(t, id, fmt.Sprintf("%d/%d", w, n))
					}
				})
			}
			seen := map[string]int{}
			after := "0"
			deadline := time.Now().Add(10 * time.Second)
			for len(seen) < writers*each && time.Now().Before(deadline) {
				p := fx.read(t, storage.EventQuery{SessionID: id, After: after, Limit: 3, Wait: 100 * time.Millisecond})
				for _, n := range ids(p.Events) {
					seen[n]++
				}
				after = p.Next
			}
			wg.Wait()
			equal(t, "events", len(seen), writers*each)
			for n, times := range seen {
				equal(t, n, times, 1)
			}
		}},
		{"events/pages", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			fx.append(t, id, "1", "2", "3")
			p := fx.read(t, storage.EventQuery{SessionID: id, After: "0", Limit: 2})
			equal(t, "first", len(p.Events), 2)
			equal(t, "more", p.More, true)
			p = fx.read(t, storage.EventQuery{SessionID: id, After: p.Next, Limit: 2})
			list(t, "second", ids(p.Events), "2", "3")
			equal(t, "more", p.More, false)
			end := p.Next
			p = fx.read(t, storage.EventQuery{SessionID: id, After: end})
			equal(t, "past the end", len(p.Events), 0)
			equal(t, "cursor past the end", p.Next, end)
			for _, bad := range []string{"x", "1-", "-1-1", "1-1-1", ""} {
				var invalid *storage.InvalidError
				if _, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: bad, Limit: 1}); !errors.As(err, &invalid) || invalid.Field != "after" {
					t.Errorf("cursor %q: %v", bad, err)
				}
			}
			if _, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: sessionid.New(0), After: "0", Limit: 1}); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("unknown session: %v", err)
			}
		}},
		{"events/the log is bounded, and says so", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			for n := range MaxEvents - 1 {
				fx.append(t, id, fmt.Sprint(n))
			}
			p := fx.read(t, storage.EventQuery{SessionID: id, After: "0"})
			equal(t, "kept", len(p.Events), MaxEvents)
			equal(t, "truncated", p.Truncated, false)
			second := p.Events[1].GetCursor()
			fx.append(t, id, "a", "b", "c")
			p = fx.read(t, storage.EventQuery{SessionID: id, After: "0"})
			equal(t, "kept", len(p.Events), MaxEvents)
			equal(t, "truncated", p.Truncated, true)
			equal(t, "truncated for a reader that has seen too little", fx.read(t, storage.EventQuery{SessionID: id, After: second}).Truncated, true)
			equal(t, "truncated for one that has seen enough", fx.read(t, storage.EventQuery{SessionID: id, After: p.Events[0].GetCursor()}).Truncated, false)
			// What has left the log can come again.
			before := fx.read(t, storage.EventQuery{SessionID: id, Tail: 1}).Next
			if again := fx.append(t, id, "0"); again[0] == before {
				t.Errorf("an id that left the log was taken for a duplicate")
			}
		}},
		{"events/refused for a session that is over", func(t TB, fx Fixture) {
			e := []*sessionv1.Event{fx.event("1", "input:text")}
			if _, err := fx.Store.Append(t.Context(), sessionid.New(0), e); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("unknown: %v", err)
			}
			ended, dying := fx.create(t, "acme", "ann", long), fx.create(t, "acme", "ann")
			_, err := fx.Store.End(t.Context(), ended, "")
			ok(t, err)
			fx.pass(6.5)
			for _, id := range []string{ended, dying} {
				if _, err := fx.Store.Append(t.Context(), id, e); !errors.Is(err, storage.ErrEnded) {
					t.Errorf("%v", err)
				}
				equal(t, "stored", len(ids(fx.read(t, storage.EventQuery{SessionID: id, After: "0"}).Events)), 0)
			}
			equal(t, "over", fx.read(t, storage.EventQuery{SessionID: ended, After: "0"}).Over, true)
		}},
		{"wait/until there is something", func(t TB, fx Fixture) {
			for name, act := range map[string]struct {
				do   func(id string)
				over bool
				n    int
			}{
				"an event": {func(id string) { fx.append(t, id, "1") }, false, 1},
				"the end": {func(id string) {
					if _, err := fx.Store.End(t.Context(), id, ""); err != nil {
						t.Errorf("%v", err)
					}
				}, true, 1},
				"deletion": {func(id string) {
					if err := fx.Store.Delete(t.Context(), id); err != nil {
						t.Errorf("%v", err)
					}
				}, true, 0},
			} {
				id := fx.create(t, "acme", "ann", long)
				after := fx.last(t, id)
				got := make(chan storage.EventPage, 1)
				go func() {
					p, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: after, Limit: 10, Wait: 20 * time.Second})
					switch {
					case errors.Is(err, storage.ErrNotFound) && act.n == 0:
						p.Over = true // deleted before the call began
					case err != nil:
						t.Errorf("%s: %v", name, err)
					}
					got <- p
				}()
				// Whether the call waits already or not, it must be answered.
				act.do(id)
				select {
				case p := <-got:
					equal(t, name+": events", len(p.Events), act.n)
					equal(t, name+": over", p.Over, act.over)
				case <-time.After(10 * time.Second):
					t.Fatalf("%s: still waiting", name)
				}
			}
		}},
		{"wait/no longer than asked", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			q := storage.EventQuery{SessionID: id, After: fx.last(t, id), Limit: 10, Wait: 50 * time.Millisecond}
			begin := time.Now()
			p := fx.read(t, q)
			equal(t, "events", len(p.Events), 0)
			equal(t, "next", p.Next, q.After)
			if d := time.Since(begin); d < 40*time.Millisecond {
				t.Errorf("returned after %v", d)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			q.Wait = 20 * time.Second
			if _, err := fx.Store.ListEvents(ctx, q); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			cancel()
		}},
	}
}
