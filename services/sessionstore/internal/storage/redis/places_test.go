package redis_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func page(t *testing.T, s *redis.Store, id, after string, wait time.Duration) storage.EventPage {
	t.Helper()
	p, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: after, Limit: 100, Wait: wait})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func eventIDs(p storage.EventPage) (ids []string) {
	for _, e := range p.Events {
		ids = append(ids, e.GetId())
	}
	return ids
}

// TestReaderAheadOfARestoredLog: a reader whose cursor is from lost data is told so,
// each time that it asks with that cursor, and misses nothing that comes after.
func TestReaderAheadOfARestoredLog(t *testing.T) {
	o := setBack(t)
	lost := o.cursors["lost"]
	waiting := make(chan storage.EventPage, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { // an outage ends a wait; a client asks again
		for ctx.Err() == nil {
			p, err := o.b.ListEvents(ctx, storage.EventQuery{SessionID: o.live, After: lost, Limit: 100, Wait: longWait})
			if err == nil {
				waiting <- p
				return
			}
			time.Sleep(20 * time.Millisecond) // the pace of the client
		}
	}()
	restore(t, o.server)
	detected(t, o.a, 1)
	detected(t, o.b, 1)
	third := open(t, o.server.URL())
	if _, err := third.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-waiting:
		if !p.Truncated || len(p.Events) != 0 || p.Next != o.cursors["kept"] {
			t.Errorf("the poll that waited: %+v", p)
		}
	case <-ctx.Done():
		t.Error("the poll that waited goes on waiting")
	}
	for name, s := range map[string]*redis.Store{"a": o.a, "b": o.b, "third": third} {
		for range 2 {
			if p := page(t, s, o.live, lost, 0); !p.Truncated || len(p.Events) != 0 || p.Next != o.cursors["kept"] {
				t.Errorf("%s: with nothing new: %+v", name, p)
			}
		}
		if p := page(t, s, o.live, o.cursors["kept"], 0); p.Truncated || len(p.Events) != 0 {
			t.Errorf("%s: after what is still there: %+v", name, p)
		}
	}
	// A journal may still hold events that were acknowledged with cursors of then.
	c, err := storage.ParseCursor("c", lost)
	if err != nil {
		t.Fatal(err)
	}
	early := storage.Cursor{Millis: c.Millis - 1}.String()
	replayed := storage.Write{SessionID: o.live, At: time.Now(), Append: []*sessionv1.Event{{Id: "early", Type: "input:text", Cursor: early}}}
	if err := o.a.Replay(t.Context(), replayed); err != nil {
		t.Fatal(err)
	}
	o.append(t, o.live, "new")
	for name, s := range map[string]*redis.Store{"a": o.a, "b": o.b, "third": third} {
		for range 2 {
			p := page(t, s, o.live, lost, longWait)
			ids := eventIDs(p)
			if !p.Truncated || len(ids) != 2 || ids[0] != "early" || ids[1] != "new" || p.Next != o.cursors["new"] {
				t.Errorf("%s: %+v", name, p)
			}
		}
		if p := page(t, s, o.live, o.cursors["new"], 0); p.Truncated {
			t.Errorf("%s: truncated at a cursor from after the loss", name)
		}
	}
}

// TestReaderAheadWithoutAKnownLoss: a loss that no mark and no replica saw is told to
// readers that are ahead of the log all the same, but not where a journal may still
// replay events up to there.
func TestReaderAheadWithoutAKnownLoss(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	id := sessionOn(t, s, 1)
	first := page(t, s, id, "0", 0).Next
	cursors, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: "e", Type: "input:text"}})
	if err != nil {
		t.Fatal(err)
	}
	client.XDel(t.Context(), "stoker:{s1}:events:"+id, cursors[0])
	at, err := storage.ParseCursor("c", cursors[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(t.Context(), "journal", time.UnixMilli(at.Millis-1)); err != nil {
		t.Fatal(err)
	}
	if p := page(t, s, id, cursors[0], 0); p.Truncated || p.Next != cursors[0] {
		t.Errorf("with a journal that has writes from before: %+v", p)
	}
	if err := s.Hold(t.Context(), "journal", time.UnixMilli(at.Millis+10_000)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if p := page(t, s, id, cursors[0], longWait); !p.Truncated || p.Next != first {
			t.Errorf("ahead of the log: %+v, want truncated and %s", p, first)
		}
	}
}

// TestIdlePollsAskOnce: whether a cursor is in its log is asked for once, and in the
// same round trip as the page.
func TestIdlePollsAskOnce(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	trips := &tripCounter{}
	s.WatchReads(trips)
	var ids, ends []string
	for i := range 50 {
		ids = append(ids, sessionOn(t, s, i))
		ends = append(ends, page(t, s, ids[i], "0", 0).Next)
	}
	client.ConfigResetStat(t.Context())
	const polls = 5
	trips.n.Store(0)
	for range polls {
		for i, id := range ids {
			if p := page(t, s, id, ends[i], 0); p.Truncated || len(p.Events) != 0 {
				t.Fatalf("%+v", p)
			}
		}
	}
	if n := trips.n.Load(); n != polls*int64(len(ids)) {
		t.Errorf("%d round trips for %d polls", n, polls*len(ids))
	}
	// The state and the page, and few more, where two cursors share a slot.
	if n, all := commands(t, client); n > polls*len(ids)*2+50 {
		t.Errorf("%d commands for %d polls: %s", n, polls*len(ids), all)
	}
}

// tripCounter counts round trips of batches and single commands.
type tripCounter struct{ n atomic.Int64 }

func (c *tripCounter) DialHook(next goredis.DialHook) goredis.DialHook { return next }
func (c *tripCounter) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *tripCounter) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmds)
	}
}

// TestTruncatedLogIsNoLoss: a reader that is behind a log which was trimmed is told so
// as before, and one at its first entry is not.
func TestTruncatedLogIsNoLoss(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL())
	id := sessionOn(t, s, 1)
	old := page(t, s, id, "0", 0).Next
	var cursors []string
	for i := range storagetest.MaxEvents + 5 {
		c, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: string(rune('a' + i)), Type: "input:text"}})
		if err != nil {
			t.Fatal(err)
		}
		cursors = append(cursors, c...)
	}
	if p := page(t, s, id, old, 0); !p.Truncated || len(p.Events) != storagetest.MaxEvents {
		t.Errorf("behind: truncated %v, %d events", p.Truncated, len(p.Events))
	}
	if p := page(t, s, id, cursors[5], 0); p.Truncated || len(p.Events) != storagetest.MaxEvents-1 {
		t.Errorf("at the first: truncated %v, %d events", p.Truncated, len(p.Events))
	}
}

// TestReaderBehindALoss: a reader that had not come as far as the lost events, and one
// that begins, are told where these are missing, in sessions that have lost any.
func TestReaderBehindALoss(t *testing.T) {
	o := setBack(t)
	restore(t, o.server)
	detected(t, o.a, 1)
	detected(t, o.b, 1)
	storagetest.Until(t, "the session is marked", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		return o.client.HExists(context.Background(), "stoker:{s1}:session:"+o.live, "gap").Val()
	})
	third := open(t, o.server.URL())
	for name, s := range map[string]*redis.Store{"a": o.a, "third": third} {
		if p := page(t, s, o.live, o.cursors["kept"], 0); p.Truncated {
			t.Errorf("%s: with nothing after the loss: %+v", name, p)
		}
	}
	o.append(t, o.live, "new")
	other := sessionOn(t, o.a, 1) // has lost nothing
	first := page(t, o.a, other, "0", 0).Next
	if _, err := o.a.Append(t.Context(), other, []*sessionv1.Event{{Id: "new", Type: "input:text"}}); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*redis.Store{"a": o.a, "third": third} {
		for range 2 {
			if p := page(t, s, o.live, o.cursors["kept"], 0); !p.Truncated || len(p.Events) != 1 {
				t.Errorf("%s: behind the loss: %+v", name, p)
			}
			if p := page(t, s, o.live, "0", 0); !p.Truncated || len(p.Events) != 3 {
				t.Errorf("%s: from the beginning: %+v", name, p)
			}
		}
		if p := page(t, s, o.live, o.cursors["new"], 0); p.Truncated {
			t.Errorf("%s: past the loss: %+v", name, p)
		}
		if p := page(t, s, other, first, 0); p.Truncated || len(p.Events) != 1 {
			t.Errorf("%s: a session that has lost nothing: %+v", name, p)
		}
	}
}

// TestFeedAfterALoss: a reader of the feed goes on where the feed has lost entries, also
// with new ones that come before those it was given, as from a server whose clock is
// behind, and an acknowledgement of what was lost skips none.
func TestFeedAfterALoss(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	s, _ := sweeping(t, server.URL())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := s.OpenFeed(ctx, "g", "c")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	next := func(want string) *sessionv1.FeedEntry {
		t.Helper()
		for {
			b, err := r.Next(ctx, 10)
			if err != nil && !errors.Is(err, storage.ErrUnavailable) {
				t.Fatal(err)
			}
			for _, e := range b.Entries {
				if e.GetSessionId() == want {
					return e
				}
			}
		}
	}
	next(sessionOn(t, s, 1))
	marked(t, client, 1)
	save(t, client)
	marked(t, client, 1)
	lost := next(sessionOn(t, s, 1))
	restore(t, server)
	detected(t, s, 1)
	at, err := storage.ParseCursor("c", lost.GetCursor())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Ack(ctx, []storage.FeedAck{{Shard: 1, Cursor: lost.GetCursor()}}); err != nil {
		t.Error("acknowledging what was lost:", err)
	}
	early := sessionid.New(1)
	add := &goredis.XAddArgs{
		Stream: "stoker:{s1}:feed", ID: storage.Cursor{Millis: at.Millis - 1, Seq: 7}.String(),
		Values: []string{"s", early, "L", storage.TypeExpiring, "n", "1"},
	}
	if err := client.XAdd(ctx, add).Err(); err != nil {
		t.Fatal(err)
	}
	e := next(early)
	if err := r.Ack(ctx, []storage.FeedAck{{Shard: 1, Cursor: e.GetCursor()}}); err != nil {
		t.Error(err)
	}
	if got := client.HGet(ctx, "stoker:{s1}:groups", "g").Val(); got != e.GetCursor() {
		t.Errorf("acknowledged up to %s, want %s", got, e.GetCursor())
	}
	next(sessionOn(t, s, 1))
}
