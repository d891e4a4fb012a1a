package storagetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// drain reads until it has n entries.
func (fx Fixture) drain(t TB, r storage.FeedReader, n int) []*sessionv1.FeedEntry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var out []*sessionv1.FeedEntry
	for len(out) < n {
		b, err := r.Next(ctx, n-len(out))
		if err != nil {
			t.Fatalf("after %d of %d entries: %v", len(out), n, err)
		}
		out = append(out, b.Entries...)
	}
	return out
}

// quiet checks that nothing more comes.
func (fx Fixture) quiet(t TB, r storage.FeedReader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	for {
		b, err := r.Next(ctx, 100)
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil || len(b.Entries) > 0 {
			t.Errorf("unexpected: %v %v", b.Entries, err)
			return
		}
	}
}

// shards reads until the reader has been given the wanted number of shards.
func (fx Fixture) shards(t TB, r storage.FeedReader, want int) []int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		b, err := r.Next(ctx, 1000)
		if err != nil {
			t.Fatalf("waiting for %d shards: %v", want, err)
		}
		if b.Changed && len(b.Shards) == want {
			return b.Shards
		}
	}
}

func (fx Fixture) open(t TB, group, consumer string) storage.FeedReader {
	t.Helper()
	r, err := fx.Store.OpenFeed(t.Context(), group, consumer)
	ok(t, err)
	return r
}

func names(entries []*sessionv1.FeedEntry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.GetEvent().GetId())
	}
	return out
}

func feedCases() []Case {
	return []Case{
		{"feed/everything of every session, without data", func(t TB, fx Fixture) {
			r := fx.open(t, "g", "c")
			id := fx.create(t, "acme", "ann", long)
			e := fx.event("1", "input:text")
			e.Data, e.Traceparent = nil, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			_, err := fx.Store.Append(t.Context(), id, []*sessionv1.Event{e, fx.event("2", "chat:send")})
			ok(t, err)
			_, err = fx.Store.End(t.Context(), id, "done")
			ok(t, err)
			ok(t, fx.Store.Delete(t.Context(), id))
			got := fx.drain(t, r, 5)
			list(t, "entries", names(got), storage.TypeCreated, "1", "2", storage.TypeEnded, storage.TypeDeleted)
			shard, _ := sessionid.Shard(id, Shards)
			for i, g := range got {
				if g.GetSessionId() != id || int(g.GetShard()) != shard || g.GetCursor() == "" || g.GetAppendTime() == nil {
					t.Errorf("entry %d: %v", i, g)
				}
			}
			same(t, "an event", got[1].GetEvent(), e)
			equal(t, "lifecycle data", got[3].GetEvent().GetData().GetStructValue().GetFields()["reason"].GetStringValue(), "done")
			fx.quiet(t, r)
			ok(t, r.Close())
		}},
		{"feed/a new group starts with what is kept", func(t TB, fx Fixture) {
			id := fx.create(t, "acme", "ann", long)
			fx.append(t, id, "1")
			r := fx.open(t, "g", "c")
			list(t, "entries", names(fx.drain(t, r, 2)), storage.TypeCreated, "1")
			ok(t, r.Close())
		}},
		{"feed/in order within a shard, no more than asked for", func(t TB, fx Fixture) {
			r := fx.open(t, "g", "c")
			id := fx.create(t, "acme", "ann", long)
			want := []string{storage.TypeCreated}
			for n := range 15 {
				want = append(want, fmt.Sprint(n))
				fx.append(t, id, fmt.Sprint(n))
			}
			var got []string
			for len(got) < len(want) {
				b, err := r.Next(t.Context(), 4)
				ok(t, err)
				if len(b.Entries) > 4 {
					t.Errorf("%d entries, asked for 4", len(b.Entries))
				}
				got = append(got, names(b.Entries)...)
			}
			list(t, "entries", got, want...)
			ok(t, r.Close())
		}},
		{"feed/what was not acknowledged comes again after close", func(t TB, fx Fixture) { redelivered(t, fx, "close") }},
		{"feed/what was not acknowledged comes again after a takeover", func(t TB, fx Fixture) { redelivered(t, fx, "takeover") }},
		{"feed/what was not acknowledged comes again to another consumer", func(t TB, fx Fixture) { redelivered(t, fx, "another") }},
		{"feed/shards are shared out and handed over", func(t TB, fx Fixture) {
			a := fx.open(t, "g", "a")
			equal(t, "alone", len(fx.shards(t, a, Shards)), Shards)
			b := fx.open(t, "g", "b")
			mine := map[int]string{}
			both := make(chan []int, 1)
			go func() { both <- fx.shards(t, b, Shards/2) }()
			for _, n := range fx.shards(t, a, Shards/2) {
				mine[n] = "a"
			}
			for _, n := range <-both {
				if mine[n] != "" {
					t.Errorf("shard %d has two readers", n)
				}
				mine[n] = "b"
			}
			equal(t, "shards", len(mine), Shards)
			ok(t, b.Close())
			equal(t, "after the other left", len(fx.shards(t, a, Shards)), Shards)
			ok(t, a.Close())
		}},
		{"feed/groups are independent, and tell how far they are", func(t TB, fx Fixture) {
			one, two := fx.open(t, "one", "c"), fx.open(t, "two", "c")
			id := fx.create(t, "acme", "ann", long)
			fx.append(t, id, "1")
			got := fx.drain(t, one, 2)
			equal(t, "the other group", len(fx.drain(t, two, 2)), 2)
			shard, _ := sessionid.Shard(id, Shards)
			state := func(group string) storage.GroupState {
				groups, err := fx.Store.Groups(t.Context())
				ok(t, err)
				for _, g := range groups {
					if g.Group == group && g.Shard == shard {
						return g
					}
				}
				t.Fatalf("group %s is not there", group)
				return storage.GroupState{}
			}
			before := state("one")
			equal(t, "consumer", before.Consumer, "c")
			equal(t, "open entries", before.Pending+before.Lag, 2)
			equal(t, "watermark", before.Watermark.UnixMilli(), got[0].GetAppendTime().AsTime().UnixMilli())
			ok(t, one.Ack(t.Context(), []storage.FeedAck{{Shard: shard, Cursor: got[1].GetCursor()}}))
			after := state("one")
			equal(t, "open entries after", after.Pending+after.Lag, 0)
			if after.Watermark.Before(before.Watermark) {
				t.Errorf("the watermark went back from %v to %v", before.Watermark, after.Watermark)
			}
			equal(t, "open entries of the other group", state("two").Pending+state("two").Lag, 2)
			ok(t, one.Close())
			ok(t, two.Close())
		}},
		{"feed/acknowledged by all is dropped", func(t TB, fx Fixture) {
			r := fx.open(t, "g", "c")
			id := fx.create(t, "acme", "ann", long)
			fx.append(t, id, "1", "2")
			got := fx.drain(t, r, 3)
			equal(t, "trimmed before", fx.sweep(t).Trimmed, 0)
			ok(t, r.Ack(t.Context(), []storage.FeedAck{{Shard: int(got[2].GetShard()), Cursor: got[2].GetCursor()}}))
			if n := fx.sweep(t).Trimmed; n < 2 {
				t.Errorf("%d entries dropped, want at least 2", n)
			}
			fx.append(t, id, "3")
			list(t, "then", names(fx.drain(t, r, 1)), "3")
			ok(t, r.Close())
		}},
		{"feed/bad acknowledgements are refused", func(t TB, fx Fixture) {
			r := fx.open(t, "g", "c")
			id := fx.create(t, "acme", "ann", long)
			got := fx.drain(t, r, 1)
			fx.append(t, id, "1")
			for _, a := range []storage.FeedAck{{Shard: int(got[0].GetShard()), Cursor: "x"}, {Shard: Shards, Cursor: got[0].GetCursor()}, {Shard: int(got[0].GetShard()), Cursor: "99999999999999-0"}} {
				var bad *storage.InvalidError
				if err := r.Ack(t.Context(), []storage.FeedAck{a}); !errors.As(err, &bad) {
					t.Errorf("%+v: %v", a, err)
				}
			}
			ok(t, r.Close())
		}},
	}
}

func redelivered(t TB, fx Fixture, way string) {
	t.Helper()
	r := fx.open(t, "g", "c")
	id := fx.create(t, "acme", "ann", long)
	fx.append(t, id, "1", "2", "3")
	got := fx.drain(t, r, 4)
	ok(t, r.Ack(t.Context(), []storage.FeedAck{{Shard: int(got[1].GetShard()), Cursor: got[1].GetCursor()}}))
	ok(t, r.Ack(t.Context(), []storage.FeedAck{{Shard: int(got[0].GetShard()), Cursor: got[0].GetCursor()}})) // never back
	next := "c"
	switch way {
	case "close":
		ok(t, r.Close())
	case "another":
		ok(t, r.Close())
		next = "d"
	}
	again := fx.open(t, "g", next)
	list(t, "delivered again", names(fx.drain(t, again, 2)), "2", "3")
	if way == "takeover" {
		if _, err := r.Next(t.Context(), 10); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("the reader before goes on: %v", err)
		}
	}
	ok(t, again.Close())
	ok(t, r.Close())
}
