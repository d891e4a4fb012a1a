//go:build e2e

package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestAnswersMoveNoBreaker: 10,000 each of not found, conflicts, refused
// requests and callers that leave, through the whole service over a real Redis,
// and the breakers are as if nothing had been.
func TestAnswersMoveNoBreaker(t *testing.T) {
	const each, callers = 10_000, 16
	redis := redistest.Start(t)
	conn := openStore(t, nil, "--redis-url", redis.URL(), "--redis-timeout", "10s", "--breaker-delay", "1h")
	store, admin := sessionv1.NewStorageServiceClient(conn), sessionv1.NewAdminServiceClient(conn)
	session := func() *sessionv1.Session {
		s, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann"})
		must(t, err)
		return s
	}
	here, gone := session(), session()
	_, err := store.DeleteSession(t.Context(), &sessionv1.DeleteSessionRequest{Id: gone.GetId()})
	must(t, err)
	labels := func(id, etag string) *sessionv1.UpdateSessionRequest {
		return &sessionv1.UpdateSessionRequest{Id: id, Etag: etag, Session: &sessionv1.Session{Labels: map[string]string{"a": "b"}}}
	}
	list := func() []*sessionv1.Breaker {
		out, err := admin.ListBreakers(t.Context(), &sessionv1.ListBreakersRequest{})
		must(t, err)
		return out.GetBreakers()
	}
	before := list()
	if len(before) < 3 {
		t.Fatalf("breakers: %v, want one of each class", before)
	}

	for _, c := range []struct {
		name string
		want map[codes.Code]bool
		// calls are made in turn.
		calls []func(ctx context.Context) error
		limit func(n int) time.Duration // of a call; 0 for none
		// least is how many of the calls must have met the first code.
		least int
	}{
		{
			name: "not found", want: map[codes.Code]bool{codes.NotFound: true}, least: each,
			calls: []func(context.Context) error{
				func(ctx context.Context) error {
					_, err := store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: gone.GetId()})
					return err
				},
				func(ctx context.Context) error {
					_, err := store.UpdateSession(ctx, labels(gone.GetId(), ""))
					return err
				},
				func(ctx context.Context) error {
					_, err := store.DeleteSession(ctx, &sessionv1.DeleteSessionRequest{Id: gone.GetId()})
					return err
				},
				func(ctx context.Context) error {
					_, err := store.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: gone.GetId(), Events: []*sessionv1.Event{{Type: "input:text"}}})
					return err
				},
			},
		},
		{
			name: "conflict", want: map[codes.Code]bool{codes.Aborted: true}, least: each,
			calls: []func(context.Context) error{func(ctx context.Context) error {
				_, err := store.UpdateSession(ctx, labels(here.GetId(), "999"))
				return err
			}},
		},
		{
			name: "invalid", want: map[codes.Code]bool{codes.InvalidArgument: true}, least: each,
			calls: []func(context.Context) error{
				func(ctx context.Context) error {
					_, err := store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: "no session id"})
					return err
				},
				func(ctx context.Context) error {
					_, err := store.CreateSession(ctx, &sessionv1.CreateSessionRequest{TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(-time.Second)}})
					return err
				},
				func(ctx context.Context) error {
					_, err := store.ListSessions(ctx, &sessionv1.ListSessionsRequest{PageToken: "no token"})
					return err
				},
			},
		},
		{
			// Half an answer's time and less, so that many leave in the middle of one.
			name: "left", want: map[codes.Code]bool{codes.DeadlineExceeded: true, codes.Canceled: true, codes.OK: true}, least: each / 4,
			limit: func(n int) time.Duration { return time.Duration(20+n%400) * time.Microsecond },
			calls: []func(context.Context) error{
				func(ctx context.Context) error {
					_, err := store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: here.GetId()})
					return err
				},
				func(ctx context.Context) error {
					_, err := store.BatchGetSessions(ctx, &sessionv1.BatchGetSessionsRequest{Ids: []string{here.GetId(), here.GetId()}})
					return err
				},
				func(ctx context.Context) error {
					_, err := store.ExtendTTL(ctx, &sessionv1.ExtendTTLRequest{Id: here.GetId()})
					return err
				},
			},
		},
	} {
		met := map[codes.Code]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				for n := g; n < each; n += callers {
					ctx, cancel := t.Context(), context.CancelFunc(func() {})
					switch {
					case c.limit != nil && n%2 == 0:
						ctx, cancel = context.WithTimeout(ctx, c.limit(n))
					case c.limit != nil:
						ctx, cancel = context.WithCancel(ctx)
						defer time.AfterFunc(c.limit(n), cancel).Stop()
					}
					code := status.Code(c.calls[n%len(c.calls)](ctx))
					cancel()
					mu.Lock()
					met[code]++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		t.Logf("%s: %v", c.name, met)
		bad := 0
		for code, n := range met {
			if !c.want[code] {
				t.Errorf("%s: answered %v %d times", c.name, code, n)
			}
			if code != codes.OK {
				bad += n
			}
		}
		if bad < c.least {
			t.Errorf("%s: only %d of %d calls met what they were made for", c.name, bad, each)
		}
	}

	after := list()
	if len(after) != len(before) {
		t.Fatalf("breakers %v, before %v", after, before)
	}
	for i, b := range after {
		if !proto.Equal(b, before[i]) || b.GetState() != sessionv1.Breaker_CLOSED || b.GetFailures() != 0 || b.GetTotalTrips() != 0 || b.GetLastFailureTime() != nil {
			t.Errorf("moved: %v, before: %v", b, before[i])
		}
	}
}
