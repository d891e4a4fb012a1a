package memory_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// brief is a session of 6 s that begins now.
func brief(now time.Time, user string) *sessionv1.Session {
	s := session(now, user)
	s.TtlPolicy = lifetime.Resolve(&sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(6 * time.Second), Extension: durationpb.New(4 * time.Second), ExtendBelow: durationpb.New(5 * time.Second),
	}, lifetime.DefaultPolicy())
	s.ExpireTime = lifetime.Time(lifetime.Deadline(now.UnixMilli(), s.GetTtlPolicy()))
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expired(t *testing.T, s *memory.Store) int {
	t.Helper()
	r, err := s.Sweep(t.Context())
	must(t, err)
	return r.Expired
}

// TestReplaysAreRememberedAcrossRestarts: holds, the names of updates, what was
// deleted and what came late into the feed, with and without a snapshot.
func TestReplaysAreRememberedAcrossRestarts(t *testing.T) {
	for _, snapshots := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshots=%v", snapshots), func(t *testing.T) {
			c, dir := storagetest.NewClock(), t.TempDir()
			s := open(t, options(c, dir))
			restart := func() {
				t.Helper()
				if snapshots {
					must(t, s.Snapshot())
				}
				must(t, s.Close())
				s = open(t, options(c, dir))
			}
			start := c.Now()
			ann := brief(start, "ann")
			must(t, s.Replay(t.Context(), storage.Write{SessionID: ann.GetId(), At: start, Create: &storage.CreateWrite{Session: ann}}))
			for n := range storage.MaxWriteIDs {
				_, err := s.Update(t.Context(), ann.GetId(), storage.Update{WriteID: fmt.Sprint("w", n)})
				must(t, err)
			}
			bob := brief(start, "bob")
			must(t, s.Replay(t.Context(), storage.Write{SessionID: bob.GetId(), At: start, Delete: true}))
			must(t, s.Hold(t.Context(), "a", start))
			must(t, s.Hold(t.Context(), "b", start))
			must(t, s.Hold(t.Context(), "b", time.Time{}))
			_, err := s.OpenFeed(t.Context(), storage.ActivityGroup, "c")
			must(t, err)

			restart()
			restart()
			got, err := s.Update(t.Context(), ann.GetId(), storage.Update{WriteID: "w0", IfRevision: 1})
			must(t, err)
			if got.GetRevision() != storage.MaxWriteIDs+1 {
				t.Errorf("revision %d", got.GetRevision())
			}
			must(t, s.Replay(t.Context(), storage.Write{SessionID: bob.GetId(), At: start, Create: &storage.CreateWrite{Session: bob}}))
			if _, err := s.Get(t.Context(), bob.GetId()); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("deleted before the restart: %v", err)
			}
			c.Advance(7 * time.Second)
			if n := expired(t, s); n != 0 {
				t.Errorf("%d expired under a hold", n)
			}
			must(t, s.Hold(t.Context(), "a", time.Time{}))
			acknowledge(t, s, 1)
			event := &sessionv1.Event{Id: "1", Type: "input:text", Time: timestamppb.New(start)}
			must(t, s.Replay(t.Context(), storage.Write{SessionID: ann.GetId(), At: start.Add(5 * time.Second), Append: []*sessionv1.Event{event}}))

			restart()
			if n := expired(t, s); n != 0 {
				t.Errorf("%d expired before the replayed activity was looked at", n)
			}
			acknowledge(t, s, 1)
			if n := expired(t, s); n != 1 {
				t.Errorf("%d expired in the end", n)
			}
		})
	}
}

// acknowledge reads n entries for the activity group.
func acknowledge(t *testing.T, s *memory.Store, n int) {
	t.Helper()
	r, err := s.OpenFeed(t.Context(), storage.ActivityGroup, "c")
	must(t, err)
	for n > 0 {
		b, err := r.Next(t.Context(), n)
		must(t, err)
		for _, e := range b.Entries {
			must(t, r.Ack(t.Context(), []storage.FeedAck{{Shard: int(e.GetShard()), Cursor: e.GetCursor()}}))
		}
		n -= len(b.Entries)
	}
	must(t, r.Close())
}

// TestDeletedAreForgottenInTheEnd: what keeps replays from bringing a session
// back does not stay for ever.
func TestDeletedAreForgottenInTheEnd(t *testing.T) {
	c := storagetest.NewClock()
	s := open(t, options(c, ""))
	x := brief(c.Now(), "ann")
	back := func() bool {
		must(t, s.Replay(t.Context(), storage.Write{SessionID: x.GetId(), At: c.Now(), Create: &storage.CreateWrite{Session: x}}))
		_, err := s.Get(t.Context(), x.GetId())
		return err == nil
	}
	must(t, s.Replay(t.Context(), storage.Write{SessionID: x.GetId(), At: c.Now(), Delete: true}))
	c.Advance(9 * time.Second)
	expired(t, s)
	if back() {
		t.Error("it came back within retention")
	}
	c.Advance(time.Second)
	expired(t, s)
	if !back() {
		t.Error("it is remembered for ever")
	}
}

// TestAdoptAndForget: a session is taken over as it is and dropped again, and
// neither leaves a trace.
func TestAdoptAndForget(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		c := storagetest.NewClock()
		s := open(t, options(c, dir))
		before := s.Status(t.Context()).Entries
		in := brief(c.Now().Add(-4*time.Second), "ann")
		in.ExpireTime = timestamppb.New(c.Now().Add(2 * time.Second))
		in.LastActivityTime, in.ExtensionCount, in.Revision = timestamppb.New(c.Now().Add(-time.Second)), 1, 9
		s.Adopt(in, fmt.Sprint(c.Now().UnixMilli()+5, "-3"))
		s.Adopt(brief(c.Now(), "ann"), "") // another session
		changed, _ := proto.Clone(in).(*sessionv1.Session)
		changed.Revision = 99
		s.Adopt(changed, "")
		s.Adopt(&sessionv1.Session{Id: "nonsense"}, "")
		if dir != "" {
			must(t, s.Close())
			s = open(t, options(c, dir))
		}
		got, err := s.Get(t.Context(), in.GetId())
		must(t, err)
		want, _ := proto.Clone(in).(*sessionv1.Session)
		want.Phase, want.CapTime = sessionv1.Session_EXPIRING, got.GetCapTime()
		if !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
		if g, _ := s.Groups(t.Context()); len(g) != 0 {
			t.Errorf("groups: %v", g)
		}
		// Activity that may have extended it already does not do so again.
		res, err := s.Extend(t.Context(), []storage.Activity{
			{SessionID: in.GetId(), Time: in.GetLastActivityTime().AsTime()}, {SessionID: in.GetId()},
		})
		must(t, err)
		if a, b := res[0].Response.GetOutcome(), res[1].Response.GetOutcome(); a != sessionv1.ExtendTTLResponse_NOT_NEEDED || b != sessionv1.ExtendTTLResponse_EXTENDED {
			t.Errorf("outcomes %v and %v", a, b)
		}
		page, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: in.GetId(), After: "0", Limit: 10})
		must(t, err)
		if len(page.Events) != 1 || page.Events[0].GetCursor() != fmt.Sprint(c.Now().UnixMilli()+5, "-4") || !page.Truncated {
			t.Errorf("log: %v", page)
		}

		ended := brief(c.Now(), "bob")
		ended.Phase, ended.EndTime, ended.EndReason = sessionv1.Session_ENDED, timestamppb.New(c.Now()), "done"
		s.Adopt(ended, "")
		if got, err := s.Get(t.Context(), ended.GetId()); err != nil || got.GetPhase() != sessionv1.Session_ENDED || got.GetEndReason() != "done" {
			t.Errorf("an ended one: %v %v", got, err)
		}
		if _, err := s.Append(t.Context(), ended.GetId(), nil); !errors.Is(err, storage.ErrEnded) {
			t.Errorf("an ended one: %v", err)
		}
		live, err := s.List(t.Context(), storage.ListQuery{Limit: 10})
		must(t, err)
		if len(live.Sessions) != 2 {
			t.Errorf("live: %v", live.Sessions)
		}

		waits := make(chan storage.EventPage)
		go func() {
			page, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: in.GetId(), After: page.Next, Limit: 1, Wait: time.Minute})
			if err != nil {
				t.Error(err)
			}
			waits <- page
		}()
		for !s.Waits(in.GetId()) {
			time.Sleep(time.Millisecond)
		}
		for _, x := range live.Sessions {
			s.Forget(x.GetId())
		}
		s.Forget(ended.GetId())
		s.Forget("nonsense")
		if page := <-waits; !page.Over {
			t.Errorf("who waits is told %v", page)
		}
		if after := s.Status(t.Context()).Entries; after != before {
			t.Errorf("%d entries, %d before", after, before)
		}
		if dir != "" {
			must(t, s.Close())
			s = open(t, options(c, dir))
		}
		if _, err := s.Get(t.Context(), in.GetId()); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("forgotten: %v", err)
		}
	}
}

// TestForgottenAfterADelete can be taken over again.
func TestForgottenAfterADelete(t *testing.T) {
	c := storagetest.NewClock()
	s := open(t, options(c, ""))
	x := brief(c.Now(), "ann")
	w := storage.Write{SessionID: x.GetId(), At: c.Now(), Create: &storage.CreateWrite{Session: x}}
	must(t, s.Replay(t.Context(), w))
	must(t, s.Delete(t.Context(), x.GetId()))
	s.Forget(x.GetId())
	must(t, s.Replay(t.Context(), w))
	if _, err := s.Get(t.Context(), x.GetId()); err != nil {
		t.Error(err)
	}
}

// TestNoFeed: a private store has no consumers to keep entries for.
func TestNoFeed(t *testing.T) {
	c := storagetest.NewClock()
	o := options(c, "")
	o.NoFeed = true
	s := open(t, o)
	_, err := s.OpenFeed(t.Context(), "g", "c")
	must(t, err)
	x := brief(c.Now(), "ann")
	_, _, err = s.Create(t.Context(), x, "")
	must(t, err)
	_, err = s.Append(t.Context(), x.GetId(), []*sessionv1.Event{{Id: "1"}})
	must(t, err)
	must(t, s.Replay(t.Context(), storage.Write{SessionID: x.GetId(), At: c.Now(), Append: []*sessionv1.Event{{Id: "2"}}}))
	c.Advance(7 * time.Second)
	if n := expired(t, s); n != 1 {
		t.Errorf("%d expired", n)
	}
	must(t, s.Delete(t.Context(), x.GetId()))
	groups, err := s.Groups(t.Context())
	must(t, err)
	for _, g := range groups {
		if g.Lag+g.Pending != 0 {
			t.Errorf("shard %d has %d entries", g.Shard, g.Lag+g.Pending)
		}
	}
}
