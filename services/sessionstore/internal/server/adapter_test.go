package server_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/livinguniverse/stoker/pkg/sessionclient"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// remote is a storage.Store on the other side of gRPC: what the suite asks of
// it goes client -> gRPC -> server -> memory. What has no RPC (Census, Sweep, Replay,
// Hold, Groups, Status, Close) goes to the store directly.
type remote struct {
	storage.Store
	client sessionv1.StorageServiceClient
}

var bySentinel = map[error]error{
	sessionclient.ErrNotFound: storage.ErrNotFound, sessionclient.ErrConflict: storage.ErrConflict,
	sessionclient.ErrEnded: storage.ErrEnded, sessionclient.ErrExhausted: storage.ErrExhausted,
}

// back gives an error of the client back as storage's.
func (r *remote) back(err error) error {
	var field *sessionclient.FieldError
	if errors.As(err, &field) {
		if field.Field == "id" {
			return storage.ErrNotFound // the wire tells malformed from unknown
		}
		return &storage.InvalidError{Field: field.Field}
	}
	for theirs, ours := range bySentinel {
		if errors.Is(err, theirs) {
			return ours
		}
	}
	if errors.Is(err, sessionclient.ErrUnavailable) && errors.Is(r.Status(context.Background()).Err, storage.ErrClosed) {
		return storage.ErrClosed
	}
	return err
}

func (r *remote) Create(ctx context.Context, s *sessionv1.Session, request string) (*sessionv1.Session, bool, error) {
	got, err := r.client.CreateSession(ctx, &sessionv1.CreateSessionRequest{
		User: s.GetUser(), Project: s.GetProject(), Labels: s.GetLabels(), Data: s.GetData(), TtlPolicy: s.GetTtlPolicy(), RequestId: request,
	})
	return got, false, r.back(err)
}

func (r *remote) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	got, err := r.client.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id})
	if id == "" && err != nil {
		err = sessionclient.ErrNotFound
	}
	return got, r.back(err)
}

func (r *remote) GetMany(ctx context.Context, ids []string) ([]storage.SessionResult, error) {
	got, err := r.client.BatchGetSessions(ctx, &sessionv1.BatchGetSessionsRequest{Ids: ids})
	if err != nil {
		return nil, r.back(err)
	}
	out := make([]storage.SessionResult, len(ids))
	for i, res := range got.GetResults() {
		out[i].Session = res.GetSession()
		if e := res.GetError(); e != nil {
			out[i].Err = storage.ErrNotFound // malformed ids included
			if codes.Code(e.GetCode()) != codes.InvalidArgument {
				out[i].Err = r.back(sessionclient.FromStatus(status.ErrorProto(e)))
			}
		}
	}
	return out, nil
}

func (r *remote) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	req := &sessionv1.UpdateSessionRequest{Id: id, Session: &sessionv1.Session{Labels: u.SetLabels, Data: u.Data}, UpdateMask: &fieldmaskpb.FieldMask{}}
	if u.IfRevision != 0 {
		req.Etag = itoa(u.IfRevision)
	}
	if u.ReplaceLabels {
		req.UpdateMask.Paths = append(req.UpdateMask.Paths, "labels")
	} else {
		for k := range u.SetLabels {
			req.UpdateMask.Paths = append(req.UpdateMask.Paths, "labels."+k)
		}
		for _, k := range u.DeleteLabels {
			req.UpdateMask.Paths = append(req.UpdateMask.Paths, "labels."+k)
		}
	}
	if u.SetData {
		req.UpdateMask.Paths = append(req.UpdateMask.Paths, "data")
	}
	got, err := r.client.UpdateSession(ctx, req)
	return got, r.back(err)
}

func (r *remote) End(ctx context.Context, id, reason string) (*sessionv1.Session, error) {
	got, err := r.client.EndSession(ctx, &sessionv1.EndSessionRequest{Id: id, Reason: reason})
	return got, r.back(err)
}

func (r *remote) Delete(ctx context.Context, id string) error {
	_, err := r.client.DeleteSession(ctx, &sessionv1.DeleteSessionRequest{Id: id})
	return r.back(err)
}

func (r *remote) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	got, err := r.client.ListSessions(ctx, &sessionv1.ListSessionsRequest{User: q.User, Project: q.Project, Phase: q.Phase, PageSize: int32(q.Limit), PageToken: q.Token})
	return storage.SessionPage{Sessions: got.GetSessions(), Next: got.GetNextPageToken()}, r.back(err)
}

func (r *remote) ActiveUsers(ctx context.Context, q storage.ListQuery) (storage.UserPage, error) {
	got, err := r.client.ListActiveUsers(ctx, &sessionv1.ListActiveUsersRequest{Project: q.Project, PageSize: int32(q.Limit), PageToken: q.Token})
	return storage.UserPage{Users: got.GetUsers(), Next: got.GetNextPageToken()}, r.back(err)
}

func (r *remote) RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error) {
	got, err := r.client.RevokeUserSessions(ctx, &sessionv1.RevokeUserSessionsRequest{User: user, Project: project, Except: except, Reason: reason})
	return int(got.GetCount()), r.back(err)
}

func (r *remote) Explain(ctx context.Context, id string) (storage.Explanation, error) {
	got, err := r.client.ExplainTTL(ctx, &sessionv1.ExplainTTLRequest{Id: id})
	return storage.Explanation{Kind: got.GetLastActivityKind(), Counts: got.GetCounts(), Decisions: got.GetDecisions()}, r.back(err)
}

func (r *remote) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	req := &sessionv1.BatchExtendTTLRequest{}
	for _, a := range items {
		item := &sessionv1.ExtendTTLRequest{Id: a.SessionID, ActivityKind: a.Kind, EventId: a.EventID, Counts: a.Counts}
		if !a.Time.IsZero() {
			item.ActivityTime = timestamppb.New(a.Time)
		}
		req.Items = append(req.Items, item)
	}
	if len(items) == 1 {
		got, err := r.client.ExtendTTL(ctx, req.GetItems()[0])
		return []storage.ExtendResult{{Response: got, Err: r.back(err)}}, nil
	}
	got, err := r.client.BatchExtendTTL(ctx, req)
	if err != nil {
		return nil, r.back(err)
	}
	out := make([]storage.ExtendResult, len(items))
	for i, res := range got.GetResults() {
		out[i].Response = res.GetResponse()
		if res.GetError() != nil { // a malformed id, which the store calls unknown
			const o = sessionv1.ExtendTTLResponse_NOT_FOUND
			out[i].Response = &sessionv1.ExtendTTLResponse{Outcome: o, Reason: lifetime.Reason(o, lifetime.Terms{}, lifetime.State{}, lifetime.State{}, 0)}
		}
	}
	return out, nil
}

func (r *remote) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	got, err := r.client.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: id, Events: events})
	return got.GetCursors(), r.back(err)
}

func (r *remote) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	req := &sessionv1.ListEventsRequest{Id: q.SessionID, Limit: int32(q.Limit), Wait: durationpb.New(q.Wait)}
	switch {
	case q.Tail == 0 && q.After == "":
		return storage.EventPage{}, &storage.InvalidError{Field: "after"} // empty is absent on the wire
	case q.Tail == 0:
		req.After = &q.After
	default:
		req.Limit = int32(q.Tail)
	}
	got, err := r.client.ListEvents(ctx, req)
	if err != nil {
		return storage.EventPage{}, r.back(err)
	}
	page := storage.EventPage{Events: got.GetEvents(), Next: got.GetNextCursor(), Truncated: got.GetTruncated(), More: got.GetPollAfter().AsDuration() == 0}
	s, err := r.Store.Get(ctx, q.SessionID)
	page.Over = errors.Is(err, storage.ErrNotFound) || s.GetEndTime() != nil
	return page, r.back(err)
}

func (r *remote) GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error) {
	got, err := r.client.GetPolicy(ctx, &sessionv1.GetPolicyRequest{Project: project})
	return got, r.back(err)
}

func (r *remote) SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error) {
	got, err := r.client.SetPolicy(ctx, &sessionv1.SetPolicyRequest{Project: project, Policy: p})
	return got, r.back(err)
}

func (r *remote) DeletePolicy(ctx context.Context, project string) error {
	_, err := r.client.DeletePolicy(ctx, &sessionv1.DeletePolicyRequest{Project: project})
	return r.back(err)
}

func (r *remote) ListPolicies(ctx context.Context, limit int, token string) (storage.PolicyPage, error) {
	got, err := r.client.ListPolicies(ctx, &sessionv1.ListPoliciesRequest{PageSize: int32(limit), PageToken: token})
	return storage.PolicyPage{Policies: got.GetPolicies(), Next: got.GetNextPageToken()}, r.back(err)
}

// remoteFeed is a feed reader at the client's end of the stream.
type remoteFeed struct {
	r       *remote
	stream  sessionv1.StorageService_FeedClient
	cancel  context.CancelFunc
	batches chan *sessionv1.FeedResponse
	err     chan error

	group string
	acked map[int]storage.Cursor

	mu   sync.Mutex
	left []*sessionv1.FeedEntry
}

func (r *remote) OpenFeed(_ context.Context, group, consumer string) (storage.FeedReader, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := r.client.Feed(ctx)
	if err == nil {
		err = stream.Send(&sessionv1.FeedRequest{Open: &sessionv1.FeedRequest_Open{Group: group, Consumer: consumer}, Credits: 1000})
	}
	if err != nil {
		cancel()
		return nil, r.back(err)
	}
	f := &remoteFeed{r: r, stream: stream, cancel: cancel, batches: make(chan *sessionv1.FeedResponse, 100), err: make(chan error, 1), group: group, acked: map[int]storage.Cursor{}}
	opened := make(chan struct{})
	go func() {
		first := sync.OnceFunc(func() { close(opened) })
		defer first()
		for {
			m, err := stream.Recv()
			if err != nil {
				f.err <- err
				close(f.batches)
				return
			}
			f.batches <- m
			first()
		}
	}()
	<-opened // the group exists from here on
	return f, nil
}

func (f *remoteFeed) Next(ctx context.Context, limit int) (storage.FeedBatch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b storage.FeedBatch
	if len(f.left) == 0 {
		select {
		case m, ok := <-f.batches:
			if !ok {
				return b, storage.ErrClosed
			}
			f.left = m.GetEntries()
			b.Changed = m.GetAssignment()
			for _, n := range m.GetShards() {
				b.Shards = append(b.Shards, int(n))
			}
		case <-ctx.Done():
			return b, ctx.Err()
		}
	}
	n := min(limit, len(f.left))
	b.Entries, f.left = f.left[:n], f.left[n:]
	return b, nil
}

// Ack sends acknowledgements, and waits until the group's state shows that the
// server has taken those that move it forward. A refusal ends the stream.
func (f *remoteFeed) Ack(ctx context.Context, acks []storage.FeedAck) error {
	req := &sessionv1.FeedRequest{}
	forward := map[int]int64{} // shard -> open entries before
	for _, a := range acks {
		req.Acks = append(req.Acks, &sessionv1.FeedRequest_Ack{Shard: int32(a.Shard), Cursor: a.Cursor})
		at, err := storage.ParseCursor("acks.cursor", a.Cursor)
		if err == nil && at.Compare(f.acked[a.Shard]) > 0 {
			f.acked[a.Shard] = at
			forward[a.Shard] = f.open(ctx, a.Shard)
		}
	}
	if err := f.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return f.r.back(err)
	}
	for shard, before := range forward {
		for f.open(ctx, shard) >= before {
			select {
			case err := <-f.err:
				f.err <- err
				return f.r.back(err)
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}

// open counts the entries of a shard that the group has not acknowledged.
func (f *remoteFeed) open(ctx context.Context, shard int) int64 {
	groups, err := f.r.Groups(ctx)
	if err != nil {
		return -1
	}
	for _, g := range groups {
		if g.Group == f.group && g.Shard == shard {
			return g.Pending + g.Lag
		}
	}
	return -1
}

func (f *remoteFeed) Close() error {
	_ = f.stream.CloseSend()
	err := <-f.err
	f.err <- err
	f.cancel()
	if errors.Is(err, io.EOF) || errors.Is(err, sessionclient.ErrUnavailable) {
		return nil
	}
	return nil
}

func TestConformanceOverTheWire(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		e := newEnv(t)
		return storagetest.Fixture{
			Store: &remote{e.store, e.client}, Unit: time.Second, Now: e.clock.Now, Advance: e.clock.Advance,
			Entries: func() int { return int(e.store.Status(t.Context()).Entries) },
		}
	}, map[string]string{
		"create/the same id is the same call":            "the service assigns the id",
		"create/stores what it was given":                "the service assigns the id; TestCreate shows the rest",
		"create/same request same session":               "the wire does not tell whether the session existed; TestRequestID shows it by its id",
		"create/request id lasts as long as the session": "as above",
		"update/refused":                                 "the number of labels is the server's limit here; TestBadInput shows it",
		"events/round trip in order":                     "the server sets the origin; TestAppend shows it",
		"feed/bad acknowledgements are refused":          "a refusal ends the stream; TestFeed shows it",

		// Writes are replayed by the replica that has accepted them: there is no RPC.
		"update/the same write is the same update":                "the wire has no name for an update; the server gives it one",
		"replay/a request key stays with the session that has it": "the wire does not tell whether the session existed",
		"replay/what was applied before is not applied again":     "the service assigns the id",
		"replay/nothing is revived":                               "as above",
		"replay/a create moves what an attempt has stored":        "as above",
		"replay/a create moves what was changed since":            "as above",
	})
}
