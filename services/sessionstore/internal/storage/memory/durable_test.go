package memory_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func session(now time.Time, user string) *sessionv1.Session {
	p := lifetime.DefaultPolicy()
	ms := now.UnixMilli()
	return &sessionv1.Session{
		Id: sessionid.New(sessionid.ShardOf("acme", user, "", storagetest.Shards)), User: user, Project: "acme", Revision: 1,
		CreateTime: lifetime.Time(ms), UpdateTime: lifetime.Time(ms), LastActivityTime: lifetime.Time(ms),
		ExpireTime: lifetime.Time(lifetime.Deadline(ms, p)), TtlPolicy: p,
	}
}

// image is everything a reader can see.
func image(t *testing.T, s *memory.Store) map[string]proto.Message {
	t.Helper()
	out := map[string]proto.Message{}
	for _, phase := range []sessionv1.Session_Phase{0, sessionv1.Session_ENDED, sessionv1.Session_EXPIRED} {
		page, err := s.List(t.Context(), storage.ListQuery{Phase: phase, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range page.Sessions {
			out[x.GetId()] = x
			events, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: x.GetId(), After: "0", Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events.Events {
				out[x.GetId()+" "+e.GetCursor()] = e
			}
			out[x.GetId()+" truncated"] = &sessionv1.ListEventsResponse{Truncated: events.Truncated}
		}
	}
	policies, err := s.ListPolicies(t.Context(), 1000, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies.Policies {
		out["policy "+p.GetProject()] = p
	}
	groups, err := s.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		out[fmt.Sprintf("group %s %d", g.Group, g.Shard)] = &sessionv1.FeedRequest{Credits: int32(g.Lag + g.Pending)}
	}
	return out
}

// TestReopenedIsTheSame changes a store in every way, and finds it unchanged
// after it was closed and opened, with and without snapshots in between.
func TestReopenedIsTheSame(t *testing.T) {
	for _, snapshots := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshots=%v", snapshots), func(t *testing.T) {
			c, dir := storagetest.NewClock(), t.TempDir()
			s := open(t, options(c, dir))
			r, err := s.OpenFeed(t.Context(), "g", "c")
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for n := range 60 {
				x, _, err := s.Create(t.Context(), session(c.Now(), fmt.Sprint("u", n%7)), fmt.Sprint("request", n))
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, x.GetId())
				use(t, s, c, ids, n)
				if snapshots && n%20 == 10 {
					if err := s.Snapshot(); err != nil {
						t.Fatal(err)
					}
				}
			}
			b, err := r.Next(t.Context(), 50)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range b.Entries[:len(b.Entries)/2] {
				if err := r.Ack(t.Context(), []storage.FeedAck{{Shard: int(e.GetShard()), Cursor: e.GetCursor()}}); err != nil {
					t.Fatal(err)
				}
			}
			before := image(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, options(c, dir))
			after := image(t, s)
			for k, want := range before {
				if !proto.Equal(after[k], want) {
					t.Errorf("%s:\nbefore %v\nafter  %v", k, want, after[k])
				}
				delete(after, k)
			}
			for k := range after {
				t.Errorf("%s was not there before", k)
			}
			// A repeated request still finds its session.
			x, existed, err := s.Create(t.Context(), session(c.Now(), "u1"), "request1")
			if err != nil || !existed || x.GetId() != ids[1] {
				t.Errorf("request1: %v %v %v", x.GetId(), existed, err)
			}
		})
	}
}

// use changes something different at each n.
func use(t *testing.T, s *memory.Store, c *storagetest.Clock, ids []string, n int) {
	t.Helper()
	id := ids[n/2]
	var err error
	switch n % 6 {
	case 0:
		_, err = s.Append(t.Context(), id, []*sessionv1.Event{{Id: fmt.Sprint(n), Type: "input:text"}, {Id: fmt.Sprint(n, "b"), Type: "step:x"}})
	case 1:
		_, err = s.Update(t.Context(), id, storage.Update{SetLabels: map[string]string{"n": fmt.Sprint(n)}})
	case 2:
		c.Advance(30 * time.Minute)
		_, err = s.Extend(t.Context(), []storage.Activity{{SessionID: id, EventID: fmt.Sprint(n)}})
	case 3:
		if n > 30 {
			_, err = s.End(t.Context(), ids[n], "done")
		}
	case 4:
		_, err = s.SetPolicy(t.Context(), fmt.Sprint("p", n%5), lifetime.DefaultPolicy())
	case 5:
		if n > 40 {
			err = s.Delete(t.Context(), ids[n-1])
		}
		if err == nil {
			_, err = s.Sweep(t.Context())
		}
	}
	if err != nil && err != storage.ErrEnded && err != storage.ErrNotFound { //nolint:errorlint // bare sentinels
		t.Fatal(err)
	}
}

func TestAnotherNumberOfShardsIsRefused(t *testing.T) {
	c, dir := storagetest.NewClock(), t.TempDir()
	s := open(t, options(c, dir))
	if _, _, err := s.Create(t.Context(), session(c.Now(), "ann"), ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o := options(c, dir)
	o.Shards *= 2
	if _, err := memory.New(o); err == nil || !strings.Contains(err.Error(), "shards") {
		t.Errorf("opened with another number of shards: %v", err)
	}
}

const childEnv = "STOKER_MEMORY_TEST_DIR"

func childDir() string { return os.Getenv(childEnv) }

// childMain is the process that TestKillLosesNothing kills: it writes as fast
// as it can and says on standard output what was acknowledged.
func childMain() {
	s, err := memory.New(memory.Options{Shards: storagetest.Shards, Clock: time.Now, DataDir: childDir(), SnapshotBytes: 256 << 10})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	ctx := context.Background()
	var mu sync.Mutex
	say := func(args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(args...)
	}
	for w := range 16 {
		go func() {
			for n := 0; ; n++ {
				x, _, err := s.Create(ctx, session(time.Now(), fmt.Sprint("u", w)), "")
				if err != nil {
					say("error", err)
					return
				}
				say("session", x.GetId())
				for e := range 5 {
					if _, err := s.Append(ctx, x.GetId(), []*sessionv1.Event{{Id: fmt.Sprint(e), Type: "input:text"}}); err != nil {
						say("error", err)
						return
					}
					say("event", x.GetId(), e)
				}
				if n%2 == 0 {
					if _, err := s.End(ctx, x.GetId(), "done"); err != nil {
						say("error", err)
						return
					}
					say("ended", x.GetId())
				}
			}
		}()
	}
	for {
		if _, err := s.Sweep(ctx); err != nil { // starts the snapshots
			say("error", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestKillLosesNothing kills a process that writes under load, several times
// over the same directory, and finds all that it was told is safe.
func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	acked, ended := map[string]int{}, map[string]bool{}
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		sc := bufio.NewScanner(out)
		n := 0
		for ; sc.Scan(); n++ {
			f := strings.Fields(sc.Text())
			switch f[0] {
			case "session":
				acked[f[1]] = 0
			case "event":
				acked[f[1]]++
			case "ended":
				ended[f[1]] = true
			default:
				t.Fatalf("round %d: %s", round, sc.Text())
			}
			if n == 4000 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		if n <= 4000 {
			t.Fatalf("round %d: the process ended by itself after %d writes", round, n)
		}
		s, err := memory.New(memory.Options{Shards: storagetest.Shards, Clock: time.Now, DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range acked {
			p, err := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 100})
			if err != nil || len(p.Events)-1 < want {
				t.Fatalf("round %d: session %s has %d of %d acknowledged events: %v", round, id, len(p.Events)-1, want, err)
			}
			if ended[id] && !p.Over {
				t.Fatalf("round %d: session %s was ended, and lives", round, id)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d sessions, none lost", len(acked))
}
