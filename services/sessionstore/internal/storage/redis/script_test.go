package redis_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestExtendAgreesWithItsReference runs random histories against the script
// and against lifetime.Extend: outcome, deadline, count and last activity must
// agree at every step, whatever the policy.
func TestExtendAgreesWithItsReference(t *testing.T) {
	s := open(t, redistest.Start(t).URL())
	rapid.Check(t, func(t *rapid.T) {
		millis := func(name string, low, high int64) *durationpb.Duration {
			return durationpb.New(time.Duration(rapid.Int64Range(low, high).Draw(t, name)) * time.Millisecond)
		}
		p := lifetime.Resolve(&sessionv1.TTLPolicy{
			BaseTtl: millis("base", 1, 100_000), Extension: millis("extension", 1, 100_000),
			MaxExtensions: proto.Int32(rapid.Int32Range(0, 60).Draw(t, "max")),
			ExtendBelow:   millis("below", 0, 150_000), MinInterval: millis("interval", 0, 30_000),
			Strategy: sessionv1.TTLPolicy_Strategy(rapid.IntRange(1, 3).Draw(t, "strategy")),
		}, lifetime.DefaultPolicy())
		least, pass, back := 1, int64(20_000), int64(60_000)
		if rapid.Bool().Draw(t, "crowded") {
			// More causes than are remembered, many in the same millisecond.
			p.Strategy, p.MaxExtensions, p.BaseTtl = sessionv1.TTLPolicy_EVERY_ACTIVITY, proto.Int32(60), durationpb.New(time.Hour)
			least, pass, back = 50, 1, 60
		}
		if rapid.Bool().Draw(t, "limited") {
			p.MaxLifetime = durationpb.New(p.GetBaseTtl().AsDuration() + millis("more", 0, 500_000).AsDuration())
		}
		// The session began in the past, so that no activity is from the future
		// and the clock of Redis plays no part.
		created := time.Now().UnixMilli() - 2_000_000
		terms := lifetime.NewTerms(created, p)
		want := lifetime.State{Expire: lifetime.Deadline(created, p), LastActivity: created}
		in := &sessionv1.Session{
			Id: sessionid.New(0), Revision: 1, CreateTime: lifetime.Time(created), UpdateTime: lifetime.Time(created),
			LastActivityTime: lifetime.Time(created), ExpireTime: lifetime.Time(want.Expire), TtlPolicy: p,
		}
		createdThen(t, s, in)
		now := created
		var items []storage.Activity
		var outcomes []sessionv1.ExtendTTLResponse_Outcome
		var states []lifetime.State
		for range rapid.IntRange(least, 60).Draw(t, "steps") {
			now += rapid.Int64Range(0, pass).Draw(t, "pass")
			at := max(created, now+rapid.Int64Range(-back, 0).Draw(t, "at"))
			id := ""
			if rapid.IntRange(0, 4).Draw(t, "named") > 0 {
				id = fmt.Sprint(rapid.IntRange(0, 80).Draw(t, "id")) // some end as others do
			}
			o, next := lifetime.Extend(terms, want, at, id, time.Now().UnixMilli())
			want = next
			items = append(items, storage.Activity{SessionID: in.GetId(), Time: time.UnixMilli(at), EventID: id})
			outcomes, states = append(outcomes, o), append(states, next)
		}
		res, err := s.Extend(t.Context(), items)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range res {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			after := r.Response.GetAfter()
			if r.Response.GetOutcome() != outcomes[i] || lifetime.Millis(after.GetExpireTime()) != states[i].Expire ||
				after.GetExtensionCount() != states[i].Count || lifetime.Millis(after.GetLastActivityTime()) != states[i].LastActivity {
				t.Fatalf("step %d, %+v: the script says %v %v, the reference %v %+v", i, items[i], r.Response.GetOutcome(), after, outcomes[i], states[i])
			}
		}
	})
}

// TestScriptsAreTaughtAgain: a server that forgot the scripts, by SCRIPT FLUSH
// or by a restart, is taught them again, one by one and in a batch.
func TestScriptsAreTaughtAgain(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s := open(t, server.URL())
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	p := lifetime.DefaultPolicy()
	create := func() string {
		now := time.Now().UnixMilli()
		x, _, err := s.Create(t.Context(), &sessionv1.Session{
			Id: sessionid.New(3), Revision: 1, CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now),
			LastActivityTime: lifetime.Time(now), ExpireTime: lifetime.Time(lifetime.Deadline(now, p)), TtlPolicy: p,
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		return x.GetId()
	}
	id := create()
	for name, forget := range map[string]func() error{
		"flush": func() error { return client.ScriptFlush(t.Context()).Err() },
		"restart": func() error {
			if err := server.Kill(); err != nil {
				return err
			}
			return server.Restart(t.Context())
		},
	} {
		if err := forget(); err != nil {
			t.Fatal(err)
		}
		items := []storage.Activity{{SessionID: id}, {SessionID: create()}, {SessionID: id}}
		res, err := s.Extend(t.Context(), items)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i, r := range res {
			if r.Err != nil || r.Response.GetOutcome() != sessionv1.ExtendTTLResponse_NOT_NEEDED {
				t.Errorf("%s: item %d: %v %v", name, i, r.Response, r.Err)
			}
		}
		if _, err := s.Append(t.Context(), id, []*sessionv1.Event{{Id: name, Type: "input:text"}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnotherNumberOfShardsIsRefused(t *testing.T) {
	server := redistest.Start(t)
	open(t, server.URL())
	_, err := redis.New(t.Context(), redis.Options{URL: server.URL(), Timeout: time.Second, Shards: storagetest.Shards * 2, Clock: time.Now})
	if err == nil {
		t.Fatal("opened with another number of shards")
	}
}

// TestNothingIsNotFoundWhileRedisIsAway: a store that cannot know says so.
func TestNothingIsNotFoundWhileRedisIsAway(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, server.URL(), func(o *redis.Options) { o.Timeout = 200 * time.Millisecond })
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	id := sessionid.New(1)
	_, getErr := s.Get(t.Context(), id)
	_, listErr := s.List(t.Context(), storage.ListQuery{Limit: 10})
	_, eventsErr := s.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 1})
	_, endErr := s.End(t.Context(), id, "")
	_, policyErr := s.GetPolicy(t.Context(), "acme")
	many, manyErr := s.GetMany(t.Context(), []string{id})
	if manyErr == nil {
		manyErr = many[0].Err
	}
	ext, extErr := s.Extend(t.Context(), []storage.Activity{{SessionID: id}})
	if extErr == nil {
		extErr = ext[0].Err
	}
	for name, err := range map[string]error{
		"get": getErr, "list": listErr, "events": eventsErr, "end": endErr, "policy": policyErr, "many": manyErr,
		"hold":   s.Hold(t.Context(), "me", time.Now()),
		"replay": s.Replay(t.Context(), storage.Write{SessionID: id, At: time.Now(), Delete: true}),
		"extend": extErr, "delete": s.Delete(t.Context(), id), "status": s.Status(t.Context()).Err,
	} {
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "the breakers let calls through again", func() bool {
		_, err := s.Get(t.Context(), id)
		if err == nil || (!errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrUnavailable)) {
			t.Fatalf("after the restart: %v", err)
		}
		return errors.Is(err, storage.ErrNotFound)
	})
}
