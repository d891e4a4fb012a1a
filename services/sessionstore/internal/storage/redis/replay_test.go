package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// replays draws writes about a few sessions of one user.
type replays struct {
	t        *rapid.T
	now      int64
	sessions []*sessionv1.Session
	done     []storage.Write
}

func (r *replays) past(name string, most int64) time.Time {
	return time.UnixMilli(r.now - rapid.Int64Range(0, most).Draw(r.t, name))
}

func (r *replays) name(kind string, most int) string {
	return fmt.Sprint(kind, rapid.IntRange(0, most).Draw(r.t, kind))
}

func (r *replays) write() storage.Write {
	if len(r.done) > 0 && rapid.IntRange(0, 4).Draw(r.t, "again") == 0 {
		return rapid.SampledFrom(r.done).Draw(r.t, "earlier")
	}
	s := rapid.SampledFrom(r.sessions).Draw(r.t, "session")
	w := storage.Write{SessionID: s.GetId(), At: r.past("at", 4000)}
	switch kind := rapid.IntRange(0, 11).Draw(r.t, "kind"); {
	case kind < 2:
		w.Create = &storage.CreateWrite{Session: s, RequestKey: rapid.SampledFrom([]string{"", "r"}).Draw(r.t, "request")}
	case kind < 5:
		w.Update = &storage.Update{
			WriteID: r.name("w", 12), IfRevision: rapid.Int64Range(0, 3).Draw(r.t, "revision") * rapid.Int64Range(0, 1).Draw(r.t, "expected"),
			SetLabels: map[string]string{r.name("l", 3): "x"}, MaxLabels: 3,
		}
	case kind < 8:
		for range rapid.IntRange(1, 3).Draw(r.t, "events") {
			e := &sessionv1.Event{Id: r.name("e", 40), Type: "input:text", Origin: sessionv1.Event_USER, Time: timestamppb.New(w.At)}
			if rapid.Bool().Draw(r.t, "told") {
				e.Cursor = storage.Cursor{Millis: r.past("cursor", 4000).UnixMilli(), Seq: rapid.Uint64Range(0, 12).Draw(r.t, "seq")}.String()
			}
			w.Append = append(w.Append, e)
		}
	case kind < 10:
		w.Extend = &storage.Activity{Kind: r.name("k", 2)}
		if rapid.Bool().Draw(r.t, "named") {
			w.Extend.EventID = r.name("a", 9)
		}
		if rapid.Bool().Draw(r.t, "timed") {
			w.Extend.Time = r.past("time", 5000).Add(time.Second)
		}
	case kind < 11:
		w.End = &storage.EndWrite{Reason: r.name("r", 9)}
	default:
		w.Delete = true
	}
	r.done = append(r.done, w)
	return w
}

func seconds(n int) *durationpb.Duration {
	return durationpb.New(time.Duration(n) * time.Second)
}

// verdictOf is what the contract says of an error.
func verdictOf(err error) string {
	var invalid *storage.InvalidError
	for _, e := range []error{storage.ErrNotFound, storage.ErrEnded, storage.ErrConflict, storage.ErrUnavailable} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	if errors.As(err, &invalid) {
		return invalid.Error()
	}
	return fmt.Sprint(err)
}

// sight is all that a reader sees of a session.
func sight(t *rapid.T, s storage.Store, id string) string {
	x, err := s.Get(t.Context(), id)
	if errors.Is(err, storage.ErrNotFound) {
		return "none"
	}
	why, err1 := s.Explain(t.Context(), id)
	log, err2 := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 1000})
	if err := errors.Join(err, err1, err2); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(x, why, log)
}

// TestReplayAgreesWithMemory replays the same writes, some of them again, into
// Redis and into memory, with sweeps under holds in between: verdicts, sessions,
// logs with their cursors and decisions must agree at every step.
func TestReplayAgreesWithMemory(t *testing.T) {
	server := redistest.Start(t)
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer func() { _ = client.Close() }()
	rapid.Check(t, func(rt *rapid.T) {
		m := modelStore(t, server, client)
		defer m.Close()
		r := &replays{t: rt, now: storagetest.ModelStart}
		o := storagetest.OptionsFor(time.Second)
		mem, err := memory.New(memory.Options{
			Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention,
			Clock: func() time.Time { return time.UnixMilli(r.now) },
		})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = mem.Close() }()
		p := lifetime.Resolve(&sessionv1.TTLPolicy{
			BaseTtl: seconds(6), Extension: seconds(4), ExtendBelow: seconds(5), ActiveWindow: seconds(2), MinInterval: seconds(1),
			Strategy: sessionv1.TTLPolicy_Strategy(rapid.IntRange(1, 3).Draw(rt, "strategy")),
		}, lifetime.DefaultPolicy())
		for range 3 {
			in := newSession(sessionid.ShardOf("acme", "ann", "", storagetest.Shards), "ann", time.Second)
			at := r.past("created", 5000).UnixMilli()
			in.CreateTime, in.UpdateTime, in.LastActivityTime = lifetime.Time(at), lifetime.Time(at), lifetime.Time(at)
			in.ExpireTime, in.TtlPolicy = lifetime.Time(lifetime.Deadline(at, p)), p
			r.sessions = append(r.sessions, in)
		}
		both := func(what string, op func(s storage.Store) (any, error)) {
			got, err1 := op(m.Store)
			want, err2 := op(mem)
			if fmt.Sprint(got, verdictOf(err1)) != fmt.Sprint(want, verdictOf(err2)) {
				rt.Fatalf("%s: Redis says %+v %v, memory %+v %v", what, got, err1, want, err2)
			}
		}
		// Less than retention in all: what was deleted is not forgotten yet.
		for left := int64(9000); left > 0; {
			switch step := rapid.IntRange(0, 9).Draw(rt, "step"); {
			case step < 6:
				w := r.write()
				both(fmt.Sprintf("%+v", w), func(s storage.Store) (any, error) { return nil, s.Replay(rt.Context(), w) })
			case step == 6:
				// In whole steps: a smaller one forward may be left to a later call.
				step := o.SettleMax / 100
				holder, from := r.name("h", 1), r.past("from", 25_000).Truncate(step)
				if rapid.IntRange(0, 3).Draw(rt, "up") == 0 {
					from = time.Time{}
				}
				both("hold", func(s storage.Store) (any, error) { return nil, s.Hold(rt.Context(), holder, from) })
			case step == 7:
				both("sweep", func(s storage.Store) (any, error) { return s.Sweep(rt.Context()) })
			default:
				d := rapid.Int64Range(0, 2500).Draw(rt, "pass")
				r.now, left = r.now+d, left-d-100
				m.SetClock(r.now)
			}
			for _, s := range r.sessions {
				if got, want := sight(rt, m.Store, s.GetId()), sight(rt, mem, s.GetId()); got != want {
					rt.Fatalf("Redis shows\n%s\nmemory\n%s", got, want)
				}
			}
		}
	})
}

// TestReplayedKeysStay: the safety net begins with the replay, not with a
// deadline that has passed long ago.
func TestReplayedKeysStay(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	in := newSession(2, "ann", time.Minute)
	at := time.Now().Add(-100 * time.Hour)
	ms := at.UnixMilli()
	in.CreateTime, in.UpdateTime, in.LastActivityTime = lifetime.Time(ms), lifetime.Time(ms), lifetime.Time(ms)
	in.ExpireTime = lifetime.Time(ms + time.Minute.Milliseconds())
	id := in.GetId()
	for i, w := range []storage.Write{
		{Create: &storage.CreateWrite{Session: in, RequestKey: "r"}},
		{Append: []*sessionv1.Event{{Id: "1", Type: "input:text", Time: timestamppb.New(at)}}},
		{Extend: &storage.Activity{Kind: "input"}},
	} {
		w.SessionID, w.At = id, at.Add(time.Duration(i)*time.Second)
		if err := s.Replay(t.Context(), w); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		for _, key := range []string{"session:" + id, "events:" + id, "request:acme\x00ann\x00r"} {
			if left := client.PTTL(t.Context(), "stoker:{s2}:"+key).Val(); left < 30*time.Minute {
				t.Errorf("after write %d %s goes in %v", i, key, left)
			}
		}
	}
}

// TestOnlyTheLatestUpdatesAreRemembered by name, so that a session does not grow.
func TestOnlyTheLatestUpdatesAreRemembered(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	id, _ := create(t, s, newSession(2, "ann", time.Hour), "")
	var names []string
	for n := range 3 * storage.MaxWriteIDs {
		names = append(names, fmt.Sprint("w", n))
		if _, err := s.Update(t.Context(), id, storage.Update{WriteID: names[n]}); err != nil {
			t.Fatal(err)
		}
	}
	if got := client.HGet(t.Context(), "stoker:{s2}:session:"+id, "wids").Val(); got != strings.Join(names[len(names)-storage.MaxWriteIDs:], " ") {
		t.Errorf("remembered: %q of %q", got, names)
	}
}

// TestReplayTellsRefusalsFromFaults: what a server that is away, shut or wrongly
// set up says of a write is no verdict on it.
func TestReplayTellsRefusalsFromFaults(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	id, _ := create(t, s, newSession(2, "ann", time.Hour), "")
	w := storage.Write{SessionID: id, At: time.Now(), End: &storage.EndWrite{}}
	user := []any{"acl", "setuser", "default", "-evalsha", "-eval"}
	if err := client.Do(t.Context(), user...).Err(); err != nil {
		t.Fatal(err)
	}
	if err := s.Replay(t.Context(), w); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("not permitted: %v", err)
	}
	if err := client.Do(t.Context(), "acl", "setuser", "default", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Replay(ctx, w); !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if err := s.Replay(t.Context(), w); err != nil {
		t.Errorf("permitted: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Replay(t.Context(), w); !errors.Is(err, storage.ErrUnavailable) || !errors.Is(err, storage.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestHoldsAreCheap: one that moves on a little is not written each time, one
// that stands still is, and those that count for nothing are dropped.
func TestHoldsAreCheap(t *testing.T) {
	server := redistest.Start(t)
	now := time.Now()
	s := open(t, server.URL(), func(o *redis.Options) {
		o.SettleMax = 10 * time.Minute
		o.Clock = func() time.Time { return now }
		o.MeasureNoClock()
	})
	client := raw(t, server)
	stored := func() string { return client.HGet(t.Context(), "stoker:{s3}:holds", "me").Val() }
	hold := func(from time.Time) {
		t.Helper()
		if err := s.Hold(t.Context(), "me", from); err != nil {
			t.Fatal(err)
		}
	}
	ms := func(at time.Time) string { return fmt.Sprint(at.UnixMilli()) }
	start := now
	hold(now)
	for range 3 {
		now = now.Add(250 * time.Millisecond)
		hold(now)
		if got := stored(); got != ms(start) {
			t.Errorf("written after %v", now.Sub(start))
		}
	}
	now = now.Add(250 * time.Millisecond)
	hold(now)
	if got := stored(); got != ms(now) {
		t.Errorf("after a second %s is stored, want %s", got, ms(now))
	}
	hold(start)
	if got := stored(); got != ms(start) {
		t.Errorf("moved back, but %s is stored", got)
	}
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	hold(start)
	if got := stored(); got != ms(start) {
		t.Errorf("Redis has lost a hold that stands still: %q", got)
	}
	hold(now.Add(-storage.HoldLife(10*time.Minute) - time.Minute))
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := client.Exists(t.Context(), "stoker:{s3}:holds").Val(); n != 0 {
		t.Error("a hold that counts for nothing is kept")
	}
}
