package sessionstore

import (
	"context"
	"math"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// replica is a session store in this process, whose clock is off by skew.
type replica struct {
	sessionv1.StorageServiceClient
	s   *Service
	tel *telemetry.Telemetry
}

func newReplica(t *testing.T, redis *redistest.Server, skew time.Duration, args ...string) *replica {
	t.Helper()
	tel, err := telemetry.Setup(t.Context(), telemetry.Config{LogLevel: "error", LogFormat: "text", ServiceName: "test"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	cfg := configured(t, append([]string{"--redis-url", redis.URL(), "--redis-timeout", "1s", "--breaker-delay", "200ms"}, args...)...)
	cfg.Clock = func() time.Time { return time.Now().Add(skew) }
	s, err := New(t.Context(), *cfg, tel)
	if err != nil {
		t.Fatal(err)
	}
	return &replica{serve(t, s, tel), s, tel}
}

// metric reads a gauge without labels of its own.
func (r *replica) metric(t *testing.T, name string) float64 {
	t.Helper()
	w := httptest.NewRecorder()
	r.tel.Metrics.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	m := regexp.MustCompile(`(?m)^` + name + `(?:\{.*\})? (\S+)$`).FindStringSubmatch(w.Body.String())
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// clockRig is a Redis with two replicas, the first of which has a wrong clock.
type clockRig struct {
	*testing.T
	redis    *goredis.Client
	replicas map[string]*replica
}

func (g *clockRig) now() time.Time {
	g.Helper()
	at, err := g.redis.Time(g.Context()).Result()
	if err != nil {
		g.Fatal(err)
	}
	return at
}

func (g *clockRig) until(at time.Time) {
	g.Helper()
	for left := at.Sub(g.now()); left > 0; left = at.Sub(g.now()) {
		time.Sleep(left)
	}
}

// between checks a time that was taken between two of Redis, to 100 ms. It ends the test
// where it is not, which would wait for an hour elsewhere.
func (g *clockRig) between(what string, got, from, to time.Time) {
	g.Helper()
	const slack = 100 * time.Millisecond
	if got.Before(from.Add(-slack)) || got.After(to.Add(slack)) {
		g.Fatalf("%s: %v, want %v to %v", what, got, from, to)
	}
}

// create creates a session through the replica with the wrong clock.
func (g *clockRig) create(user string) *sessionv1.Session {
	g.Helper()
	s, err := g.replicas["wrong"].CreateSession(g.Context(), &sessionv1.CreateSessionRequest{User: user, TtlPolicy: &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(6 * time.Second), Extension: durationpb.New(3 * time.Second), ExtendBelow: durationpb.New(2 * time.Second),
		MaxExtensions: proto.Int32(1), ActiveWindow: durationpb.New(time.Minute),
	}})
	if err != nil {
		g.Fatal(err)
	}
	if life := s.GetExpireTime().AsTime().Sub(s.GetCreateTime().AsTime()); life != 6*time.Second {
		g.Errorf("lives for %v", life)
	}
	if life := s.GetCapTime().AsTime().Sub(s.GetCreateTime().AsTime()); life != 9*time.Second {
		g.Errorf("capped at %v", life)
	}
	return s
}

// reads checks what every replica reads of a live session.
func (g *clockRig) reads(s *sessionv1.Session, deadline time.Time, phase sessionv1.Session_Phase) {
	g.Helper()
	for name, r := range g.replicas {
		got, err := r.GetSession(g.Context(), &sessionv1.GetSessionRequest{Id: s.GetId()})
		if err != nil || got.GetPhase() != phase || !got.GetCreateTime().AsTime().Equal(s.GetCreateTime().AsTime()) || !got.GetExpireTime().AsTime().Equal(deadline) {
			g.Errorf("%s: %v %v, want %v until %v", name, got, err, phase, deadline)
		}
		before := g.now()
		ttl, err := r.GetTTL(g.Context(), &sessionv1.GetTTLRequest{Id: s.GetId()})
		if err != nil {
			g.Fatalf("%s: %v", name, err)
		}
		g.between(name+": deadline - remaining", deadline.Add(-ttl.GetRemaining().AsDuration()), before, g.now())
		list, err := r.ListSessions(g.Context(), &sessionv1.ListSessionsRequest{User: s.GetUser(), Phase: phase})
		if err != nil || len(list.GetSessions()) != 1 {
			g.Errorf("%s lists %v %v", name, list, err)
		}
		users, err := r.ListActiveUsers(g.Context(), &sessionv1.ListActiveUsersRequest{PageSize: 100})
		if err != nil || !strings.Contains(users.String(), s.GetUser()) {
			g.Errorf("%s lists the users %v %v", name, users, err)
		}
	}
}

// extend reports activity an hour from now, as a client whose clock is wrong does.
func (g *clockRig) extend(r *replica, id string, want sessionv1.ExtendTTLResponse_Outcome) {
	g.Helper()
	for _, at := range []*timestamppb.Timestamp{nil, timestamppb.New(g.now().Add(time.Hour))} {
		res, err := r.ExtendTTL(g.Context(), &sessionv1.ExtendTTLRequest{Id: id, ActivityTime: at, ActivityKind: "input"})
		if err != nil || res.GetOutcome() != want {
			g.Fatalf("%v %v, want %v", res, err, want)
		}
		if want == sessionv1.ExtendTTLResponse_EXTENDED {
			return
		}
	}
}

func (g *clockRig) life() {
	g.Helper()
	before := g.now()
	s := g.create("ann")
	g.between("create_time", s.GetCreateTime().AsTime(), before, g.now())
	deadline := s.GetExpireTime().AsTime()
	g.reads(s, deadline, sessionv1.Session_ACTIVE)
	_, err := g.replicas["wrong"].AppendEvents(g.Context(), &sessionv1.AppendEventsRequest{Id: s.GetId(), Events: []*sessionv1.Event{
		{Type: "input:text"}, {Type: "input:text", Time: timestamppb.New(before.Add(30 * time.Minute))},
	}})
	if err != nil {
		g.Fatal(err)
	}
	log, err := g.replicas["right"].ListEvents(g.Context(), &sessionv1.ListEventsRequest{Id: s.GetId(), After: proto.String("0")})
	if err != nil || len(log.GetEvents()) != 3 {
		g.Fatalf("%v %v", log, err)
	}
	for _, e := range log.GetEvents() {
		g.between("time of "+e.GetType(), e.GetTime().AsTime(), before, g.now())
	}
	for _, r := range g.replicas {
		g.extend(r, s.GetId(), sessionv1.ExtendTTLResponse_NOT_NEEDED)
	}
	g.until(deadline.Add(-3 * time.Second))
	for _, r := range g.replicas {
		g.extend(r, s.GetId(), sessionv1.ExtendTTLResponse_NOT_NEEDED)
	}
	g.until(deadline.Add(-1500 * time.Millisecond))
	g.reads(s, deadline, sessionv1.Session_EXPIRING)
	g.extend(g.replicas["wrong"], s.GetId(), sessionv1.ExtendTTLResponse_EXTENDED)
	deadline = deadline.Add(3 * time.Second)
	g.reads(s, deadline, sessionv1.Session_ACTIVE)
	g.ends(s, deadline)
}

// ends checks that a session is live until its deadline, and over from then on.
func (g *clockRig) ends(s *sessionv1.Session, deadline time.Time) {
	g.Helper()
	g.until(deadline.Add(-500 * time.Millisecond))
	g.reads(s, deadline, sessionv1.Session_EXPIRING)
	g.until(deadline.Add(20 * time.Millisecond))
	for name, r := range g.replicas {
		got, err := r.GetSession(g.Context(), &sessionv1.GetSessionRequest{Id: s.GetId()})
		if err != nil || got.GetPhase() != sessionv1.Session_EXPIRED {
			g.Errorf("%s, past the deadline: %v %v", name, got.GetPhase(), err)
		}
	}
	if _, err := g.replicas["wrong"].s.store.Sweep(g.Context()); err != nil {
		g.Fatal(err)
	}
}

// TestWrongClockOfTheStore: a replica an hour ahead or behind, beside one whose clock
// is right, with and without the journal.
func TestWrongClockOfTheStore(t *testing.T) {
	for name, c := range map[string]struct {
		skew    time.Duration
		journal bool
	}{
		"ahead": {time.Hour, false}, "behind": {-time.Hour, false},
		"ahead, journal": {time.Hour, true}, "behind, journal": {-time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			var args []string
			if c.journal {
				args = []string{"--data-dir", t.TempDir()}
			}
			g := &clockRig{T: t, redis: goredis.NewClient(&goredis.Options{Addr: server.Addr}), replicas: map[string]*replica{
				"wrong": newReplica(t, server, c.skew, args...), "right": newReplica(t, server, 0),
			}}
			defer g.redis.Close()
			wrong := g.replicas["wrong"]
			st, err := wrong.s.admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
			if err != nil || (st.GetClockDifference().AsDuration()-c.skew).Abs() > 100*time.Millisecond || !strings.Contains(st.String(), `code:"clock"`) {
				t.Errorf("status: %v %v", st, err)
			}
			if got := wrong.metric(t, "stoker_store_clock_difference_seconds"); math.Abs(got-c.skew.Seconds()) > 0.1 {
				t.Errorf("stoker_store_clock_difference_seconds %v, want %v", got, c.skew.Seconds())
			}
			g.life()
			if c.journal {
				g.outage(server)
			}
		})
	}
}

// outage creates a session in an outage, which lives by the time that its caller was
// told, on both replicas.
func (g *clockRig) outage(server *redistest.Server) {
	g.Helper()
	wrong := g.replicas["wrong"]
	if err := server.Kill(); err != nil {
		g.Fatal(err)
	}
	before := time.Now() // Redis is on this machine
	s := g.create("bob")
	g.between("create_time in an outage", s.GetCreateTime().AsTime(), before, time.Now())
	if n := wrong.s.store.journal.Stats().Waiting; n != 1 {
		g.Fatalf("%d writes in the journal, want the creation", n)
	}
	ttl, err := wrong.GetTTL(g.Context(), &sessionv1.GetTTLRequest{Id: s.GetId()})
	if err != nil {
		g.Fatal(err)
	}
	g.between("deadline - remaining in an outage", s.GetExpireTime().AsTime().Add(-ttl.GetRemaining().AsDuration()), before, time.Now())
	if err := server.Restart(g.Context()); err != nil {
		g.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Second); wrong.s.store.journal.Stats().Waiting > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			g.Fatal("the creation is not replayed")
		}
		// Calls close the breakers.
		_, _ = g.replicas["right"].GetSession(g.Context(), &sessionv1.GetSessionRequest{Id: s.GetId()})
	}
	g.ends(s, s.GetExpireTime().AsTime())
}
