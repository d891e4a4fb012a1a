package redis_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// record is a log that several goroutines write to.
type record struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

// losses is how many losses were logged.
func (r *record) losses() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.buf.String(), wentBack)
}

const wentBack = "data in Redis has gone back in time"

// sweeping opens a store that is swept all the time, as a running replica is.
func sweeping(t *testing.T, url string, change ...func(*redis.Options)) (*redis.Store, *record) {
	t.Helper()
	log := &record{}
	s := open(t, url, append(change, func(o *redis.Options) {
		o.Timeout, o.Log, o.SettleMax, o.Retention = 300*time.Millisecond, slog.New(slog.NewTextHandler(log, nil)), time.Minute, time.Minute
	})...)
	keepSweeping(t, s)
	return s, log
}

// keepSweeping sweeps every 100 ms until the test or the returned call ends it.
func keepSweeping(t *testing.T, s *redis.Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			_, _ = s.Sweep(ctx) // fails while Redis is down
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// marked waits until a store has written marks since now.
func marked(t *testing.T, client *goredis.Client, replicas int) {
	t.Helper()
	began := time.Now().UnixMilli()
	storagetest.Until(t, "every replica has a mark", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		n := 0
		for field, v := range client.HGetAll(context.Background(), "stoker:{s0}:marks").Val() {
			if strings.HasPrefix(field, "at:") && storedNumber(v) > began {
				n++
			}
		}
		return n >= replicas
	})
}

func storedNumber(text string) (n int64) {
	for _, c := range text {
		n = 10*n + int64(c-'0')
	}
	return n
}

// feedEnd is the time of the last entry of a feed.
func feedEnd(t *testing.T, client *goredis.Client, feed string) int64 {
	t.Helper()
	last, err := client.XRevRangeN(context.Background(), feed, "+", "-", 1).Result()
	if err != nil || len(last) == 0 {
		t.Fatal(last, err)
	}
	ms, _, _ := strings.Cut(last[0].ID, "-")
	return storedNumber(ms)
}

// restore ends a server and starts it with the data of its last SAVE.
func restore(t *testing.T, server *redistest.Server) {
	t.Helper()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func save(t *testing.T, client *goredis.Client) {
	t.Helper()
	if err := client.Save(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func detected(t *testing.T, s *redis.Store, n int64) storage.Status {
	t.Helper()
	began := time.Now()
	var st storage.Status
	storagetest.Until(t, "the loss is detected", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		st = s.Status(context.Background())
		return st.Losses >= n
	})
	t.Logf("detected %v after the restart, a span of %v", time.Since(began).Round(time.Millisecond), st.LossSpan)
	return st
}

// older is a server that was set back while two replicas ran: sessions by what has
// become of them since.
type older struct {
	server *redistest.Server
	client *goredis.Client
	a, b   *redis.Store
	log    *record

	live, ended, revoked, deleted, extended, fresh string
	cursors                                        map[string]string
	spent                                          time.Duration // from the snapshot to the restart
}

// setBack prepares one; change is made to its first replica.
func setBack(t *testing.T, change ...func(*redis.Options)) *older {
	t.Helper()
	o := &older{server: redistest.Start(t), cursors: map[string]string{}}
	o.client = raw(t, o.server)
	o.a, o.log = sweeping(t, o.server.URL(), change...)
	o.b, _ = sweeping(t, o.server.URL())
	for _, id := range []*string{&o.live, &o.ended, &o.deleted} {
		*id, _ = create(t, o.a, newSession(1, "ann", time.Hour), "")
	}
	o.revoked, _ = create(t, o.a, newSession(storage.UserShard("acme", "bob", storagetest.Shards), "bob", time.Hour), "")
	o.extended, _ = create(t, o.a, newSession(2, "eve", 5*time.Minute), "")
	o.append(t, o.live, "kept")
	marked(t, o.client, 2)
	save(t, o.client)
	saved := time.Now()
	marked(t, o.client, 2)
	ctx := t.Context()
	o.append(t, o.live, "lost")
	if _, err := o.a.End(ctx, o.ended, "done"); err != nil {
		t.Fatal(err)
	}
	if n, err := o.a.RevokeUser(ctx, "acme", "bob", nil, "stolen"); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if err := o.a.Delete(ctx, o.deleted); err != nil {
		t.Fatal(err)
	}
	if r, err := o.a.Extend(ctx, []storage.Activity{{SessionID: o.extended}}); err != nil || r[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		t.Fatal(r, err)
	}
	o.fresh, _ = create(t, o.a, newSession(3, "joe", time.Hour), "")
	marked(t, o.client, 2)
	o.spent = time.Since(saved)
	return o
}

func (o *older) append(t *testing.T, id, event string) {
	t.Helper()
	cursors, err := o.a.Append(t.Context(), id, []*sessionv1.Event{{Id: event, Type: "input:text"}})
	if err != nil {
		t.Fatal(err)
	}
	o.cursors[event] = cursors[0]
}

// TestOlderSnapshotIsDetected: replicas that run while a server comes back with an
// older snapshot report it within a second, and what they saw end stays ended.
func TestOlderSnapshotIsDetected(t *testing.T) {
	o := setBack(t)
	restore(t, o.server)
	if n := o.client.Exists(t.Context(), "stoker:{s3}:session:"+o.fresh).Val(); n != 0 {
		t.Fatal("nothing was lost")
	}
	began := time.Now()
	for _, s := range []*redis.Store{o.a, o.b} {
		st := detected(t, s, 1)
		if st.LossSpan < o.spent/2 || st.LossSpan > o.spent+time.Second {
			t.Errorf("the data went back by %v, reported %v", o.spent, st.LossSpan)
		}
		if st.LastLoss.Before(began.Add(-time.Second)) {
			t.Errorf("lost at %v", st.LastLoss)
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("detected after %v", took)
	}
	storagetest.Until(t, "what ended has ended again for everybody", func() bool {
		time.Sleep(10 * time.Millisecond) // the pace of the attempts
		ctx := context.Background()
		return o.client.HGet(ctx, "stoker:{s1}:session:"+o.ended, "st").Val() == "1" &&
			o.client.Exists(ctx, "stoker:{s1}:session:"+o.deleted).Val() == 0 &&
			o.client.ZCard(ctx, "stoker:{s1}:deadlines").Val() == 1
	})
	third := open(t, o.server.URL()) // knows nothing by itself
	for name, s := range map[string]*redis.Store{"a": o.a, "b": o.b, "third": third} {
		o.check(t, name, s)
	}
	for _, s := range []*redis.Store{o.a, o.b} {
		if st := s.Status(t.Context()); st.Losses != 1 {
			t.Errorf("one loss was reported %d times", st.Losses)
		}
	}
	if n := o.log.losses(); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func (o *older) check(t *testing.T, name string, s *redis.Store) {
	t.Helper()
	for id, want := range map[string]sessionv1.Session_Phase{
		o.ended: sessionv1.Session_ENDED, o.revoked: sessionv1.Session_ENDED, o.live: sessionv1.Session_ACTIVE,
	} {
		if x, err := s.Get(t.Context(), id); err != nil || x.GetPhase() != want {
			t.Errorf("%s: %v is %v %v, want %v", name, id, x.GetPhase(), err, want)
		}
	}
	if x, err := s.Get(t.Context(), o.revoked); err != nil || x.GetEndReason() != "stolen" {
		t.Errorf("%s: revoked because of %q, %v", name, x.GetEndReason(), err)
	}
	if _, err := s.Get(t.Context(), o.deleted); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("%s: the deleted session: %v", name, err)
	}
	users, err := s.ActiveUsers(t.Context(), storage.ListQuery{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range users.Users {
		if u.GetUser() == "bob" || u.GetUser() == "ann" && u.GetSessionCount() != 1 {
			t.Errorf("%s: %v is active", name, u)
		}
	}
}

// TestEndedStaysEndedBeforeALossIsNoticed: what a replica saw end it neither shows as
// live nor changes, also before it has noticed the loss, and where Redis takes no
// writes.
func TestEndedStaysEndedBeforeALossIsNoticed(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	other := open(t, server.URL()) // learns by the feed alone
	ids := map[string]string{}
	for _, kind := range []string{"ended", "revoked", "deleted", "expired"} {
		base := time.Hour
		if kind == "expired" {
			base = 600 * time.Millisecond
		}
		shard := 1
		if kind == "revoked" {
			shard = storage.UserShard("acme", "user-revoked", storagetest.Shards)
		}
		ids[kind], _ = create(t, s, newSession(shard, "user-"+kind, base), "")
	}
	save(t, client)
	ctx := t.Context()
	_, err1 := s.End(ctx, ids["ended"], "done")
	_, err2 := s.RevokeUser(ctx, "acme", "user-revoked", nil, "stolen")
	err3 := s.Delete(ctx, ids["deleted"])
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "it expires", func() bool {
		r, err := s.Sweep(ctx)
		return err == nil && r.Expired == 1
	})
	storagetest.Until(t, "the other replica has read of it", func() bool { return redis.Endings(other) == 4 && redis.Endings(s) == 4 })
	restore(t, server)
	if st := client.HGet(ctx, "stoker:{s1}:session:"+ids["ended"], "st").Val(); st != "0" {
		t.Fatalf("the end was not lost: state %q", st)
	}
	// The one that expired is extended in the restored data, as by a replica that knows
	// nothing.
	if err := client.HSet(ctx, "stoker:{s1}:session:"+ids["expired"], "exp", time.Now().Add(time.Hour).UnixMilli()).Err(); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*redis.Store{"own": s, "other": other} {
		storagetest.Until(t, "its connections are new", func() bool { _, err := s.Get(ctx, ids["ended"]); return err == nil })
		for kind, id := range ids {
			checkNotLive(t, name+": "+kind, s, id, kind == "deleted")
		}
		page, err := s.List(ctx, storage.ListQuery{Limit: 10, Phase: sessionv1.Session_ACTIVE})
		if err != nil || len(page.Sessions) != 0 {
			t.Errorf("%s: lists %v, %v", name, page.Sessions, err)
		}
		users, err := s.ActiveUsers(ctx, storage.ListQuery{Limit: 10})
		if err != nil || len(users.Users) != 0 {
			t.Errorf("%s: active: %v, %v", name, users.Users, err)
		}
	}
}

func checkNotLive(t *testing.T, name string, s *redis.Store, id string, deleted bool) {
	t.Helper()
	ctx := t.Context()
	want, over := error(nil), storage.ErrEnded
	outcome := sessionv1.ExtendTTLResponse_ENDED
	if deleted {
		want, over, outcome = storage.ErrNotFound, storage.ErrNotFound, sessionv1.ExtendTTLResponse_NOT_FOUND
	}
	x, err := s.Get(ctx, id)
	if !errors.Is(err, want) || err == nil && x.GetPhase() != sessionv1.Session_ENDED && x.GetPhase() != sessionv1.Session_EXPIRED {
		t.Errorf("%s: reads as %v, %v", name, x.GetPhase(), err)
	}
	if _, err := s.Append(ctx, id, []*sessionv1.Event{{Id: "e", Type: "input:text"}}); !errors.Is(err, over) {
		t.Errorf("%s: appending: %v", name, err)
	}
	if _, err := s.Update(ctx, id, storage.Update{SetData: true}); !errors.Is(err, over) {
		t.Errorf("%s: updating: %v", name, err)
	}
	for _, items := range [][]storage.Activity{{{SessionID: id}}, {{SessionID: id}, {SessionID: id}}} {
		res, err := s.Extend(ctx, items)
		if err != nil || res[0].Err != nil || res[0].Response.GetOutcome() != outcome {
			t.Errorf("%s: extending: %v, %v", name, res, err)
		}
	}
	for kind, w := range map[string]storage.Write{
		"append": {Append: []*sessionv1.Event{{Id: "r", Type: "input:text"}}}, "extend": {Extend: &storage.Activity{Time: time.Now()}},
		"update": {Update: &storage.Update{SetData: true, WriteID: "w"}},
	} {
		w.SessionID, w.At = id, time.Now()
		if err := s.Replay(ctx, w); !errors.Is(err, over) {
			t.Errorf("%s: replaying %s: %v", name, kind, err)
		}
	}
	page, err := s.ListEvents(ctx, storage.EventQuery{SessionID: id, After: "0", Limit: 10})
	if !errors.Is(err, want) || err == nil && !page.Over {
		t.Errorf("%s: events: %+v, %v", name, page, err)
	}
	if _, err := s.Explain(ctx, id); !errors.Is(err, want) {
		t.Errorf("%s: explain: %v", name, err)
	}
}

// TestEndIsAppliedAgainPastARestoredDeadline: a session that ended after its restored
// deadline, which an extension had moved, ends again all the same: late activity could
// extend it otherwise.
func TestEndIsAppliedAgainPastARestoredDeadline(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	s, _ := sweeping(t, server.URL())
	ctx := t.Context()
	// A group that acknowledges nothing keeps the session from being swept.
	r, err := s.OpenFeed(ctx, storage.ActivityGroup, "c")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in := newSession(1, "ann", 700*time.Millisecond)
	id, _ := create(t, s, in, "")
	marked(t, client, 1)
	save(t, client)
	if res, err := s.Extend(ctx, []storage.Activity{{SessionID: id}}); err != nil || res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		t.Fatal(res, err)
	}
	time.Sleep(time.Until(in.GetExpireTime().AsTime()) + 50*time.Millisecond)
	if _, err := s.End(ctx, id, "stolen"); err != nil {
		t.Fatal(err)
	}
	marked(t, client, 1)
	restore(t, server)
	detected(t, s, 1)
	key := "stoker:{s1}:session:" + id
	storagetest.Until(t, "it has ended in Redis", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		return client.HGet(context.Background(), key, "st").Val() == "1"
	})
	if why := client.HGet(ctx, key, "why").Val(); why != "stolen" {
		t.Errorf("ended because of %q", why)
	}
	third := open(t, server.URL())
	res, err := third.Extend(ctx, []storage.Activity{{SessionID: id, Time: in.GetExpireTime().AsTime().Add(-time.Millisecond)}})
	if err != nil || res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_ENDED {
		t.Errorf("late activity by a replica that knows nothing: %v, %v", res, err)
	}
}

// TestWhatWasReadAsEndedStaysEnded: a replica that did not run when a session ended, and
// has read since that it is over, by whatever call, does not return it as live.
func TestWhatWasReadAsEndedStaysEnded(t *testing.T) {
	server := redistest.Start(t)
	s, client := open(t, server.URL()), raw(t, server)
	ctx := t.Context()
	ids := map[string]string{}
	reads := map[string]func(s *redis.Store, id string) (*sessionv1.Session, error){
		"Get": func(s *redis.Store, id string) (*sessionv1.Session, error) { return s.Get(ctx, id) },
		"GetMany": func(s *redis.Store, id string) (*sessionv1.Session, error) {
			res, err := s.GetMany(ctx, []string{id})
			if err != nil {
				return nil, err
			}
			return res[0].Session, res[0].Err
		},
	}
	for name := range reads {
		ids[name] = sessionOn(t, s, 1)
	}
	save(t, client)
	for _, id := range ids {
		if _, err := s.End(ctx, id, "done"); err != nil {
			t.Fatal(err)
		}
	}
	late := open(t, server.URL())
	for name, read := range reads {
		if x, err := read(late, ids[name]); err != nil || x.GetPhase() != sessionv1.Session_ENDED {
			t.Fatal(name, x, err)
		}
	}
	restore(t, server)
	storagetest.Until(t, "its connections are new", func() bool { _, err := late.Get(ctx, ids["Get"]); return err == nil })
	for name, id := range ids {
		checkNotLive(t, name, late, id, false)
	}
}

// TestRequestKeyOfADeletedSession: a creation under the request key of a session that
// was deleted creates another one, also where older data has brought the deleted one
// back, and it is never answered that there is none.
func TestRequestKeyOfADeletedSession(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL())
	ctx := t.Context()
	first, _ := create(t, s, newSession(1, "ann", time.Hour), "key")
	save(t, raw(t, server))
	if err := s.Delete(ctx, first); err != nil {
		t.Fatal(err)
	}
	restore(t, server)
	storagetest.Until(t, "its connections are new", func() bool {
		_, err := s.Get(ctx, first)
		return errors.Is(err, storage.ErrNotFound)
	})
	second, existed := create(t, s, newSession(1, "ann", time.Hour), "key")
	if second == first || existed {
		t.Errorf("created %s, want another than %s", second, first)
	}
	if again, existed := create(t, s, newSession(1, "ann", time.Hour), "key"); again != second || !existed {
		t.Errorf("the same request again: %s %v, want %s", again, existed, second)
	}

	// Creations under one key, and deletions of what they return, at the same time.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 200 {
				sess, _, err := s.Create(context.Background(), newSession(1, "ann", time.Hour), "busy")
				if errors.Is(err, storage.ErrUnavailable) {
					continue // its keys changed too fast
				}
				if err != nil {
					t.Errorf("a creation: %v", err)
					return
				}
				if err := s.Delete(context.Background(), sess.GetId()); err != nil && !errors.Is(err, storage.ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
