package redis_test

import (
	"context"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// go-redis stops its batch workers after Close has returned.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9.(*AutoPipeliner).flusher"))
}

// unit is what these tests can tell apart: every wait in them is real.
const unit = 200 * time.Millisecond

func open(t testing.TB, url string, change ...func(*redis.Options)) *redis.Store {
	t.Helper()
	s, err := redis.New(t.Context(), optionsFor(url, change...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// optionsFor returns what open opens a store with.
func optionsFor(url string, change ...func(*redis.Options)) redis.Options {
	o := storagetest.OptionsFor(unit)
	opts := redis.Options{
		URL: url, Timeout: 2 * time.Second, Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents,
		SettleMax: o.SettleMax, Retention: o.Retention, LeaseTTL: 600 * time.Millisecond, Clock: time.Now,
		Breakers: resilience.NewRegistry(resilience.BreakerConfig{Delay: 100 * time.Millisecond}, nil),
	}
	for _, c := range change {
		c(&opts)
	}
	return opts
}

// databases hands out the databases of one server, so that cases that run side
// by side share the server and not the data.
type databases struct {
	addr  string
	login string // with the '@' at its end; empty for the default user
	mu    sync.Mutex
	next  int
}

func (d *databases) url(t testing.TB) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	return "redis://" + d.login + d.addr + "/" + strconv.Itoa(d.next)
}

var constant = regexp.MustCompile(`:(feed|groups|meta|policies|projects|lease:.*|consumers:.*|holds|marks|replayed|gone:.*)$`)

func fixture(t testing.TB, url string) storagetest.Fixture {
	t.Helper()
	s := open(t, url)
	opts, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	opts.Username, opts.Password = "", "" // the test may do more than the store
	client := goredis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return storagetest.Fixture{
		Store: s, Unit: unit, Now: time.Now, Advance: time.Sleep,
		Replica: func() storage.Store { return open(t, url) },
		Entries: func() int { return perSession(t, client) },
	}
}

// perSession counts the keys that belong to sessions: all but feeds, groups,
// leases, what is there once, and what is remembered of deleted ones, which goes
// by itself.
func perSession(t testing.TB, client *goredis.Client) int {
	t.Helper()
	n := 0
	iter := client.Scan(context.Background(), 0, "stoker:*", 1000).Iterator()
	for iter.Next(context.Background()) {
		if constant.MatchString(iter.Val()) {
			continue
		}
		n++
	}
	if err := iter.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestConformance runs the suite as a user with the documented rights and no others,
// and compares what each script declares with what it touches throughout.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real deadlines; the whole suite runs in `make test`")
	}
	server := redistest.Start(t, "--databases", "200")
	d := &databases{addr: server.Addr, login: addLeastUser(t, server.Addr)}
	first := d.url(t)
	s := open(t, first)
	watched := watchDeclarations(t, server, s)
	t.Cleanup(func() { watched.finish(t, s.DeclaredKinds()) }) // after the cases, which run side by side
	opts, err := goredis.ParseURL(first)
	if err != nil {
		t.Fatal(err)
	}
	opts.Username, opts.Password = "", ""
	client := goredis.NewClient(opts)
	t.Cleanup(func() { // after the cases
		checkRightsUsed(t, client)
		_ = client.Close()
	})
	exerciseScripts(t, s, client)
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		return fixture(t, d.url(t))
	}, nil)
}
