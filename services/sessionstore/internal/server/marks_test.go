package server_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/fallback"
)

// away is a store that can be made unable to answer.
type away struct {
	storage.Store
	down atomic.Bool
}

func (a *away) err() error {
	if a.down.Load() {
		return fmt.Errorf("%w: refused", storage.ErrUnavailable)
	}
	return nil
}

func (a *away) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.Get(ctx, id)
}

func (a *away) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.GetMany(ctx, ids)
}

func (a *away) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.GetPolicy(ctx, project)
}

func (a *away) Create(ctx context.Context, s *sessionv1.Session, key string) (*sessionv1.Session, bool, error) {
	if err := a.err(); err != nil {
		return nil, false, err
	}
	return a.Store.Create(ctx, s, key)
}

func newFallbackEnv(t testing.TB) (*env, *away) {
	t.Helper()
	a := &away{}
	e := newEnvOver(t, func(e *env, s storage.Store) storage.Store {
		a.Store = s
		f, err := fallback.New(a, fallback.Options{Clock: e.clock.Now, Stale: e.marks.Stale})
		if err != nil {
			t.Fatal(err)
		}
		return f
	})
	return e, a
}

// marked are the headers of an answer that mark it.
func marked(h metadata.MD) string {
	return fmt.Sprint(h.Get("stoker-served-by"), h.Get("stoker-stale-for"), h.Get("stoker-durability"))
}

const unmarked = "[] [] []"

func TestAnswersFromTheFallbackAreMarked(t *testing.T) {
	e, store := newFallbackEnv(t)
	if _, err := e.client.SetPolicy(t.Context(), &sessionv1.SetPolicyRequest{Project: "acme", Policy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	e.clock.Advance(time.Second)
	old := e.create(t, &sessionv1.CreateSessionRequest{User: "ann", Project: "acme"}).GetId()
	gone := e.create(t, &sessionv1.CreateSessionRequest{User: "ben"}).GetId()
	if _, err := e.client.DeleteSession(t.Context(), &sessionv1.DeleteSessionRequest{Id: gone}); err != nil {
		t.Fatal(err)
	}
	e.clock.Advance(90 * time.Second)
	fresh := e.create(t, &sessionv1.CreateSessionRequest{User: "ann"}).GetId()

	get := func(id string) func(grpc.CallOption) error {
		return func(h grpc.CallOption) error {
			_, err := e.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id}, h)
			return err
		}
	}
	many := func(ids ...string) func(grpc.CallOption) error {
		return func(h grpc.CallOption) error {
			_, err := e.client.BatchGetSessions(t.Context(), &sessionv1.BatchGetSessionsRequest{Ids: ids}, h)
			return err
		}
	}
	create := func(h grpc.CallOption) error {
		_, err := e.client.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{Project: "acme"}, h)
		return err
	}
	unknown := sessionid.New(1)
	check := func(name string, call func(grpc.CallOption) error, code codes.Code, want string) {
		t.Helper()
		var h metadata.MD
		if err := call(grpc.Header(&h)); status.Code(err) != code || marked(h) != want {
			t.Errorf("%s: answered %v, marked %s; want %v, %s", name, err, marked(h), code, want)
		}
	}
	check("while the store answers", get(fresh), codes.OK, unmarked)
	e.clock.Advance(1500 * time.Millisecond)
	store.down.Store(true)
	check("known", get(fresh), codes.OK, "[fallback] [1.5s] []")
	check("older", get(old), codes.OK, "[fallback] [91.5s] []")
	check("deleted", get(gone), codes.NotFound, "[fallback] [91.5s] []")
	check("never seen", get(unknown), codes.Unavailable, unmarked)
	check("many", many(fresh, old, unknown), codes.OK, "[fallback] [91.5s] []")
	check("none of many", many(unknown), codes.OK, unmarked)
	check("a write that read a policy", create, codes.Unavailable, unmarked)
	var h metadata.MD
	if _, err := e.client.GetTTL(t.Context(), &sessionv1.GetTTLRequest{Id: fresh}, grpc.Header(&h)); err != nil || marked(h) != "[fallback] [1.5s] []" {
		t.Errorf("deadline: %v, marked %s", err, marked(h))
	}
	store.down.Store(false)
	check("once it answers again", get(fresh), codes.OK, unmarked)
}

// TestNeverSeenSaysWhenToComeBack: not knowing is UNAVAILABLE with RetryInfo.
func TestNeverSeenSaysWhenToComeBack(t *testing.T) {
	e, store := newFallbackEnv(t)
	store.down.Store(true)
	_, err := e.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: sessionid.New(1)})
	told := slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool {
		r, ok := d.(*errdetails.RetryInfo)
		return ok && r.GetRetryDelay().AsDuration() > 0
	})
	if status.Code(err) != codes.Unavailable || !told {
		t.Errorf("answered %v with %v", err, status.Convert(err).Details())
	}
}

// TestEachMarkIsSaidOnce, however often a decorator makes it, with the oldest
// age.
func TestEachMarkIsSaidOnce(t *testing.T) {
	var marks *server.Marks
	e := newEnvOver(t, func(e *env, s storage.Store) storage.Store {
		marks = e.marks
		return &marking{Store: s, mark: func(ctx context.Context) {
			for _, age := range []time.Duration{time.Second, 3 * time.Minute, 0} {
				marks.Stale(ctx, age)
				marks.Journaled(ctx)
			}
		}}
	})
	id := e.create(t, &sessionv1.CreateSessionRequest{}).GetId()
	var h metadata.MD
	if _, err := e.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id}, grpc.Header(&h)); err != nil || marked(h) != "[fallback] [180s] [journal]" {
		t.Errorf("%v, marked %s", err, marked(h))
	}
	// A stream says it before its first message.
	stream, err := e.client.WatchEvents(t.Context(), &sessionv1.WatchEventsRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if h, err := stream.Header(); err != nil || marked(h) != "[fallback] [180s] [journal]" {
		t.Errorf("stream: %v, marked %s", err, marked(h))
	}
}

// marking is a store that marks every session it reads and every log.
type marking struct {
	storage.Store
	mark func(ctx context.Context)
}

func (m *marking) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	m.mark(ctx)
	return m.Store.Get(ctx, id)
}

func (m *marking) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	m.mark(ctx)
	return m.Store.ListEvents(ctx, q)
}

// TestMarkingCostsNothingUnlessUsed: neither where nothing is marked nor where
// there is no call, as in a sweep.
func TestMarkingCostsNothingUnlessUsed(t *testing.T) {
	marks := server.NewMarks()
	ctx := grpc.NewContextWithServerTransportStream(t.Context(), &stream{})
	if n := testing.AllocsPerRun(100, func() { marks.BeforeAnswer(ctx, nil) }); n != 0 {
		t.Errorf("%v allocations for a call that nobody marked", n)
	}
	marks.Stale(context.Background(), time.Second)
	marks.Journaled(context.Background())
	marks.BeforeAnswer(context.Background(), nil)
	s := &stream{}
	ctx = grpc.NewContextWithServerTransportStream(t.Context(), s)
	marks.Stale(ctx, time.Second)
	marks.Stale(grpc.NewContextWithServerTransportStream(t.Context(), &stream{}), time.Minute) // another call
	marks.BeforeAnswer(ctx, nil)
	marks.BeforeAnswer(ctx, nil)
	if marked(s.header) != "[fallback] [1s] []" {
		t.Errorf("marked %v", s.header)
	}
}

// stream is a call without a connection.
type stream struct{ header metadata.MD }

func (s *stream) Method() string { return "" }

func (s *stream) SetHeader(md metadata.MD) error {
	s.header = metadata.Join(s.header, md)
	return nil
}

func (s *stream) SendHeader(metadata.MD) error { return nil }
func (s *stream) SetTrailer(metadata.MD) error { return nil }

// BenchmarkGetSession is the hot path, through the decorator that may mark it.
func BenchmarkGetSession(b *testing.B) {
	e, _ := newFallbackEnv(b)
	s, err := e.client.CreateSession(b.Context(), &sessionv1.CreateSessionRequest{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.client.GetSession(b.Context(), &sessionv1.GetSessionRequest{Id: s.GetId()}); err != nil {
			b.Fatal(err)
		}
	}
}
