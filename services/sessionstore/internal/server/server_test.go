package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/sessionclient"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// env is a real server on a pipe, with the embedded store behind it.
type env struct {
	clock  *storagetest.Clock
	store  *memory.Store
	conn   *grpc.ClientConn
	client sessionv1.StorageServiceClient
	marks  *server.Marks
	stop   context.CancelFunc
}

func newEnv(t testing.TB) *env {
	t.Helper()
	return newEnvOver(t, func(_ *env, s storage.Store) storage.Store { return s })
}

// newEnvOver serves the store through a decorator.
func newEnvOver(t testing.TB, over func(*env, storage.Store) storage.Store) *env {
	t.Helper()
	e := &env{clock: storagetest.NewClock(), marks: server.NewMarks()}
	o := storagetest.OptionsFor(time.Second)
	var err error
	e.store, err = memory.New(memory.Options{
		Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention, Clock: e.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	tel := telemetry.Nop()
	metrics, err := server.NewMetrics(tel.Meter, e.store, nil)
	if err != nil {
		t.Fatal(err)
	}
	stopping, stop := context.WithCancel(context.Background())
	e.stop = stop
	none := auth.Config{Mode: auth.ModeNone}
	authn, err := none.Authenticator()
	if err != nil {
		t.Fatal(err)
	}
	srv, _, err := rpc.NewServer(rpc.ServerConfig{Telemetry: tel, Auth: authn, ErrorMapper: server.ToStatus, Plain: server.Plain, BeforeAnswer: e.marks.BeforeAnswer})
	if err != nil {
		t.Fatal(err)
	}
	store := over(e, e.store)
	sessionv1.RegisterStorageServiceServer(srv, server.New(server.Config{
		Store: store, Shards: storagetest.Shards, Policy: lifetime.DefaultPolicy(), Clock: e.clock.Now, Metrics: metrics, Stopping: stopping,
		Limits: server.Limits{EventData: 64 << 10, SessionData: 256 << 10, Labels: 64}, PollInterval: 5 * time.Second, Heartbeat: 50 * time.Millisecond,
	}))
	sessionv1.RegisterAdminServiceServer(srv, server.NewAdmin(store, resilience.NewRegistry(resilience.BreakerConfig{}, nil), e.clock.Now()))
	pipe := rpc.NewPipe()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(pipe.Listener()) }()
	e.conn, err = rpc.Dial(rpc.PipeTarget, tel, append(sessionclient.Interceptors(), pipe.DialOption())...)
	if err != nil {
		t.Fatal(err)
	}
	e.client = sessionclient.New(e.conn)
	t.Cleanup(func() {
		stop()
		_ = e.conn.Close()
		rpc.Stop(srv, time.Second)
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := e.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *env) create(t *testing.T, req *sessionv1.CreateSessionRequest) *sessionv1.Session {
	t.Helper()
	s, err := e.client.CreateSession(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCreate(t *testing.T) {
	e := newEnv(t)
	_, err := e.client.SetPolicy(t.Context(), &sessionv1.SetPolicyRequest{Project: "acme", Policy: &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(time.Hour), Extension: durationpb.New(time.Minute),
	}})
	if err != nil {
		t.Fatal(err)
	}
	data, _ := structpb.NewValue(map[string]any{"a": []any{1.0, nil}})
	s := e.create(t, &sessionv1.CreateSessionRequest{
		User: "ann", Project: "acme", Labels: map[string]string{"a": "b"}, Data: data,
		TtlPolicy: &sessionv1.TTLPolicy{Extension: durationpb.New(30 * time.Minute), MaxExtensions: proto.Int32(1)},
	})
	now := e.clock.Now()
	want := &sessionv1.Session{
		Id: s.GetId(), User: "ann", Project: "acme", Labels: map[string]string{"a": "b"}, Data: data, Phase: sessionv1.Session_ACTIVE, Revision: 1,
		CreateTime: timestamppb.New(now), UpdateTime: timestamppb.New(now), LastActivityTime: timestamppb.New(now),
		ExpireTime: timestamppb.New(now.Add(time.Hour)), CapTime: timestamppb.New(now.Add(90 * time.Minute)),
		TtlPolicy: lifetime.Resolve(&sessionv1.TTLPolicy{
			BaseTtl: durationpb.New(time.Hour), Extension: durationpb.New(30 * time.Minute), MaxExtensions: proto.Int32(1),
		}, lifetime.DefaultPolicy()),
	}
	if !proto.Equal(s, want) {
		t.Errorf("got  %v\nwant %v", s, want)
	}
	// A policy that changes later does not reach a session that exists.
	if _, err := e.client.DeletePolicy(t.Context(), &sessionv1.DeletePolicyRequest{Project: "acme"}); err != nil {
		t.Fatal(err)
	}
	got, err := e.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: s.GetId()})
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("after the policy was deleted: %v %v", got, err)
	}
}

func TestRequestID(t *testing.T) {
	e := newEnv(t)
	for _, user := range []string{"ann", ""} {
		first := e.create(t, &sessionv1.CreateSessionRequest{User: user, RequestId: "r"})
		if again := e.create(t, &sessionv1.CreateSessionRequest{User: user, RequestId: "r"}); again.GetId() != first.GetId() {
			t.Errorf("user %q: another session for the same request", user)
		}
	}
}

func TestAppend(t *testing.T) {
	e := newEnv(t)
	id := e.create(t, &sessionv1.CreateSessionRequest{User: "ann"}).GetId()
	future := timestamppb.New(e.clock.Now().Add(time.Hour))
	resp, err := e.client.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{
		{Type: "input:text", Origin: sessionv1.Event_SYSTEM, Time: future, Cursor: "made up"},
		{Id: "mine", Type: "session:subscribe"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := e.client.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id})
	if err != nil || len(list.GetEvents()) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	got := list.GetEvents()[1]
	if got.GetOrigin() != sessionv1.Event_USER || len(got.GetId()) != 32 || !got.GetTime().AsTime().Equal(e.clock.Now()) ||
		got.GetCursor() != resp.GetCursors()[0] || got.GetTraceparent() == "" {
		t.Errorf("stored %v", got)
	}
	if list.GetNextCursor() != resp.GetCursors()[1] || list.GetPollAfter().AsDuration() != 5*time.Second {
		t.Errorf("listed %v", list)
	}
}

// losing is a store in which a log has lost events twice.
type losing struct {
	storage.Store
	pages []storage.EventPage
}

func (l *losing) ListEvents(context.Context, storage.EventQuery) (storage.EventPage, error) {
	if len(l.pages) == 0 {
		return storage.EventPage{Over: true}, nil
	}
	p := l.pages[0]
	l.pages = l.pages[1:]
	return p, nil
}

// TestWatchTellsOfEachLoss: a watch tells at each place that events are gone, also
// where none has come after them.
func TestWatchTellsOfEachLoss(t *testing.T) {
	pages := []storage.EventPage{
		{Events: []*sessionv1.Event{{Id: "a", Cursor: "1-0"}, {Id: "b", Cursor: "2-0"}}, Next: "2-0", Truncated: true},
		{Next: "1-0", Truncated: true},
		{Next: "1-0"},
		{Events: []*sessionv1.Event{{Id: "c", Cursor: "3-0"}}, Next: "3-0", Truncated: true},
	}
	e := newEnvOver(t, func(_ *env, s storage.Store) storage.Store { return &losing{s, pages} })
	id := e.create(t, &sessionv1.CreateSessionRequest{User: "ann"}).GetId()
	stream, err := e.client.WatchEvents(t.Context(), &sessionv1.WatchEventsRequest{Id: id, After: proto.String("0")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		got = append(got, fmt.Sprint(m.GetCursor(), m.GetEvent().GetId(), m.GetTruncated()))
	}
	want := []string{"1-0atrue", "2-0bfalse", "1-0true", "1-0false", "3-0ctrue"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWatch(t *testing.T) {
	e := newEnv(t)
	id := e.create(t, &sessionv1.CreateSessionRequest{User: "ann"}).GetId()
	stream, err := e.client.WatchEvents(t.Context(), &sessionv1.WatchEventsRequest{Id: id, After: proto.String("0")})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	heartbeats := 0
	ended := false
	for {
		m, err := stream.Recv()
		if err != nil {
			break // the session is over
		}
		if m.GetEvent() != nil {
			seen = append(seen, m.GetEvent().GetType())
			continue
		}
		if heartbeats++; heartbeats == 1 {
			if _, err := e.client.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Type: "input:text"}}}); err != nil {
				t.Fatal(err)
			}
		} else if !ended {
			ended = true
			if _, err := e.client.EndSession(t.Context(), &sessionv1.EndSessionRequest{Id: id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := strings.Join(seen, " "); got != "session:created input:text session:ended" {
		t.Errorf("saw %s", got)
	}
}

func TestStreamsEndWhenTheServerStops(t *testing.T) {
	e := newEnv(t)
	id := e.create(t, &sessionv1.CreateSessionRequest{User: "ann"}).GetId()
	feed, err := e.client.Feed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := feed.Send(&sessionv1.FeedRequest{Open: &sessionv1.FeedRequest_Open{Group: "g", Consumer: "c"}, Credits: 10}); err != nil {
		t.Fatal(err)
	}
	if m, err := feed.Recv(); err != nil || !m.GetAssignment() || len(m.GetShards()) != storagetest.Shards {
		t.Fatalf("%v %v", m, err)
	}
	done := make(chan error, 1)
	go func() {
		page, err := e.client.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, After: proto.String("0"), Wait: durationpb.New(20 * time.Second)})
		if err == nil {
			_, err = e.client.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, After: proto.String(page.GetNextCursor()), Wait: durationpb.New(20 * time.Second)})
		}
		done <- err
	}()
	e.stop()
	if _, err := feed.Recv(); err == nil {
		t.Error("the feed goes on")
	}
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("a poll was answered by %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a poll still waits")
	}
}

func TestFeed(t *testing.T) {
	e := newEnv(t)
	open := func(first *sessionv1.FeedRequest) sessionv1.StorageService_FeedClient {
		s, err := e.client.Feed(t.Context())
		if err == nil {
			err = s.Send(first)
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, first := range map[string]*sessionv1.FeedRequest{
		"no open":        {Credits: 1},
		"no group":       {Open: &sessionv1.FeedRequest_Open{Consumer: "c"}},
		"bad consumer":   {Open: &sessionv1.FeedRequest_Open{Group: "g", Consumer: "c c"}},
		"alien cursor":   {Open: &sessionv1.FeedRequest_Open{Group: "g", Consumer: "c"}, Acks: nil},
		"absurd credits": {Open: &sessionv1.FeedRequest_Open{Group: "g", Consumer: "c"}, Credits: -1},
	} {
		s := open(first)
		if name == "alien cursor" {
			if err := s.Send(&sessionv1.FeedRequest{Acks: []*sessionv1.FeedRequest_Ack{{Shard: 1, Cursor: "99999999999999-0"}}}); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		for err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Never more than the credits allow.
	s := open(&sessionv1.FeedRequest{Open: &sessionv1.FeedRequest_Open{Group: "credits", Consumer: "c"}, Credits: 2})
	if _, err := s.Recv(); err != nil { // the assignment: the group is there
		t.Fatal(err)
	}
	for n := range 5 {
		e.create(t, &sessionv1.CreateSessionRequest{User: fmt.Sprint(n)})
	}
	got := 0
	for got < 2 {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got += len(m.GetEntries())
	}
	if got != 2 {
		t.Errorf("%d entries for 2 credits", got)
	}
	if err := s.Send(&sessionv1.FeedRequest{Credits: 3}); err != nil {
		t.Fatal(err)
	}
	for got < 5 {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got += len(m.GetEntries())
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := s.Recv(); err != nil {
			break
		}
	}
}

// slowFeed delivers only once the client has closed its side.
type slowFeed struct {
	storage.Store
	closed <-chan struct{}
}

type slowReader struct {
	storage.FeedReader
	closed <-chan struct{}
}

func (s slowFeed) OpenFeed(ctx context.Context, group, consumer string) (storage.FeedReader, error) {
	r, err := s.Store.OpenFeed(ctx, group, consumer)
	return slowReader{r, s.closed}, err
}

func (r slowReader) Next(ctx context.Context, limit int) (storage.FeedBatch, error) {
	select {
	case <-r.closed:
	case <-ctx.Done():
		return storage.FeedBatch{}, ctx.Err()
	}
	return r.FeedReader.Next(ctx, limit)
}

// TestFeedAnswersWhoAsksOnce and closes: before the stream ends.
func TestFeedAnswersWhoAsksOnce(t *testing.T) {
	closed := make(chan struct{})
	e := newEnvOver(t, func(_ *env, s storage.Store) storage.Store { return slowFeed{s, closed} })
	s, err := e.client.Feed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&sessionv1.FeedRequest{Open: &sessionv1.FeedRequest_Open{Group: "once", Consumer: "c"}, Credits: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(closed) }) // long after the server has seen it
	if m, err := s.Recv(); err != nil || !m.GetAssignment() {
		t.Fatalf("asked once: %v %v", m, err)
	}
	for err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestAdmin(t *testing.T) {
	e := newEnv(t)
	admin := sessionv1.NewAdminServiceClient(e.conn)
	st, err := admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
	if err != nil || st.GetBackend() != "memory" || !st.GetReachable() || st.GetShards() != storagetest.Shards {
		t.Errorf("%v %v", st, err)
	}
	if _, err := admin.SetBreaker(t.Context(), &sessionv1.SetBreakerRequest{Name: "x", State: sessionv1.Breaker_OPEN}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown breaker: %v", err)
	}
	if err := e.store.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{}); err != nil || st.GetReachable() {
		t.Errorf("a closed store: %v %v", st, err)
	}
	if _, err := e.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: sessionid.New(0)}); status.Code(err) != codes.Unavailable {
		t.Errorf("a closed store answers %v", err)
	}
}

// TestBadInput: each mistake has its code and blames its field, and nothing is
// stored.
func TestBadInput(t *testing.T) {
	e := newEnv(t)
	id := e.create(t, &sessionv1.CreateSessionRequest{User: "ann"}).GetId()
	before := e.store.Status(t.Context()).Entries
	labels := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("k", i)] = ""
		}
		return m
	}
	create := func(r *sessionv1.CreateSessionRequest) func() error {
		return func() error { _, err := e.client.CreateSession(t.Context(), r); return err }
	}
	policy := func(p *sessionv1.TTLPolicy) func() error {
		return create(&sessionv1.CreateSessionRequest{TtlPolicy: p})
	}
	app := func(events ...*sessionv1.Event) func() error {
		return func() error {
			_, err := e.client.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: id, Events: events})
			return err
		}
	}
	update := func(r *sessionv1.UpdateSessionRequest) func() error {
		r.Id = id
		return func() error { _, err := e.client.UpdateSession(t.Context(), r); return err }
	}
	deep := structpb.NewNullValue()
	for range 70 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	big := structpb.NewStringValue(strings.Repeat("x", 300<<10))
	d := durationpb.New
	for _, c := range []struct {
		name  string
		call  func() error
		code  codes.Code
		field string
	}{
		{"malformed id", func() error {
			_, err := e.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: "x"})
			return err
		}, codes.InvalidArgument, "id"},
		{"no id", func() error { _, err := e.client.GetTTL(t.Context(), &sessionv1.GetTTLRequest{}); return err }, codes.InvalidArgument, "id"},
		{"unknown id", func() error {
			_, err := e.client.EndSession(t.Context(), &sessionv1.EndSessionRequest{Id: sessionid.New(1)})
			return err
		}, codes.NotFound, ""},
		{"page token", func() error {
			_, err := e.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageToken: "zz"})
			return err
		}, codes.InvalidArgument, "pageToken"},
		{"page size", func() error {
			_, err := e.client.ListSessions(t.Context(), &sessionv1.ListSessionsRequest{PageSize: 1001})
			return err
		}, codes.InvalidArgument, "pageSize"},
		{"cursor", func() error {
			_, err := e.client.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, After: proto.String("x")})
			return err
		}, codes.InvalidArgument, "after"},
		{"wait", func() error {
			_, err := e.client.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, Wait: d(31 * time.Second)})
			return err
		}, codes.InvalidArgument, "wait"},
		{"base_ttl 0", policy(&sessionv1.TTLPolicy{BaseTtl: d(0)}), codes.InvalidArgument, "ttlPolicy.baseTtl"},
		{"negative extension", policy(&sessionv1.TTLPolicy{Extension: d(-1)}), codes.InvalidArgument, "ttlPolicy.extension"},
		{"absurd extension", policy(&sessionv1.TTLPolicy{Extension: &durationpb.Duration{Seconds: 315576000000}}), codes.InvalidArgument, "ttlPolicy.extension"},
		{"max_extensions", policy(&sessionv1.TTLPolicy{MaxExtensions: proto.Int32(-1)}), codes.InvalidArgument, "ttlPolicy.maxExtensions"},
		{"extension over max_lifetime", policy(&sessionv1.TTLPolicy{BaseTtl: d(time.Second), MaxLifetime: d(time.Minute)}), codes.InvalidArgument, "ttlPolicy.extension"},
		{"cap under base", policy(&sessionv1.TTLPolicy{MaxLifetime: d(20 * time.Hour)}), codes.InvalidArgument, "ttlPolicy.maxLifetime"},
		{"rule pattern", policy(&sessionv1.TTLPolicy{ActivityRules: []*sessionv1.ActivityRule{{Pattern: "a*b"}}}), codes.InvalidArgument, "ttlPolicy.activityRules[0].pattern"},
		{"project policy", func() error {
			_, err := e.client.SetPolicy(t.Context(), &sessionv1.SetPolicyRequest{Project: "acme", Policy: &sessionv1.TTLPolicy{MaxLifetime: d(time.Hour)}})
			return err
		}, codes.InvalidArgument, "policy.maxLifetime"},
		{"project name", create(&sessionv1.CreateSessionRequest{Project: "a/b"}), codes.InvalidArgument, "project"},
		{"user name", create(&sessionv1.CreateSessionRequest{User: "a\x00b"}), codes.InvalidArgument, "user"},
		{"too many labels", create(&sessionv1.CreateSessionRequest{Labels: labels(65)}), codes.InvalidArgument, "labels"},
		{"label key", create(&sessionv1.CreateSessionRequest{Labels: map[string]string{"a b": ""}}), codes.InvalidArgument, `labels["a b"]`},
		{"session data", create(&sessionv1.CreateSessionRequest{Data: big}), codes.InvalidArgument, "data"},
		{"NaN", create(&sessionv1.CreateSessionRequest{Data: structpb.NewNumberValue(math.NaN())}), codes.InvalidArgument, "data"},
		{"no kind", create(&sessionv1.CreateSessionRequest{Data: &structpb.Value{}}), codes.InvalidArgument, "data"},
		{"too deep", create(&sessionv1.CreateSessionRequest{Data: deep}), codes.InvalidArgument, "data"},
		{"mask", update(&sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"user"}}}), codes.InvalidArgument, "updateMask"},
		{"nothing to update", update(&sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{}}), codes.InvalidArgument, "session"},
		{"etag", update(&sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{Data: deep}, Etag: "abc"}), codes.InvalidArgument, "etag"},
		{"stale etag", update(&sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{Labels: labels(1)}, Etag: "7"}), codes.Aborted, ""},
		{"labels beyond the limit by update", update(&sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{Labels: labels(65)}}), codes.InvalidArgument, "session.labels"},
		{"no events", app(), codes.InvalidArgument, "events"},
		{"empty type", app(&sessionv1.Event{}), codes.InvalidArgument, "events[0].type"},
		{"reserved type", app(&sessionv1.Event{Type: "a:b"}, &sessionv1.Event{Type: "session:expired"}), codes.InvalidArgument, "events[1].type"},
		{"reserved id", app(&sessionv1.Event{Type: "a:b", Id: "session:created"}), codes.InvalidArgument, "events[0].id"},
		{"event data", app(&sessionv1.Event{Type: "a:b", Data: structpb.NewStringValue(strings.Repeat("x", 1<<20))}), codes.InvalidArgument, "events[0].data"},
		{"event time", app(&sessionv1.Event{Type: "a:b", Time: &timestamppb.Timestamp{Seconds: 1}}), codes.InvalidArgument, "events[0].time"},
		{"traceparent", app(&sessionv1.Event{Type: "a:b", Traceparent: "00-x"}), codes.InvalidArgument, "events[0].traceparent"},
		{"501 events", app(make501()...), codes.InvalidArgument, "events"},
		{"activity time", func() error {
			_, err := e.client.ExtendTTL(t.Context(), &sessionv1.ExtendTTLRequest{Id: id, ActivityTime: &timestamppb.Timestamp{Seconds: 1}})
			return err
		}, codes.InvalidArgument, "activityTime"},
		{"batch of none", func() error {
			_, err := e.client.BatchGetSessions(t.Context(), &sessionv1.BatchGetSessionsRequest{})
			return err
		}, codes.InvalidArgument, "ids"},
	} {
		err := c.call()
		s, _ := status.FromError(err)
		if s.Code() != c.code {
			t.Errorf("%s: %v, want %v", c.name, err, c.code)
			continue
		}
		if got := blamed(s); c.field != "" && !strings.Contains(" "+got+" ", " "+c.field+" ") {
			t.Errorf("%s: blames %q, want %q: %s", c.name, got, c.field, s.Message())
		}
	}
	if after := e.store.Status(t.Context()).Entries; after != before {
		t.Errorf("%d entries before, %d after", before, after)
	}
	page, err := e.store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 10})
	if err != nil || len(page.Events) != 1 {
		t.Errorf("events were stored: %v %v", page, err)
	}
}

func make501() []*sessionv1.Event {
	out := make([]*sessionv1.Event, 501)
	for i := range out {
		out[i] = &sessionv1.Event{Type: "a:b"}
	}
	return out
}

func blamed(s *status.Status) string {
	var fields []string
	for _, d := range s.Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.GetFieldViolations() {
				fields = append(fields, v.GetField())
			}
		}
	}
	return strings.Join(fields, " ")
}
