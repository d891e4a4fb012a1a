//go:build e2e

package e2e

import (
	"context"
	"math/rand/v2"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// linBuggy is a store with a bug: what is nil is the store's own.
type linBuggy struct {
	sessionv1.StorageServiceClient
	getFn    func(ctx context.Context, in *sessionv1.GetSessionRequest) (*sessionv1.Session, error)
	createFn func(ctx context.Context, in *sessionv1.CreateSessionRequest) (*sessionv1.Session, error)
	updateFn func(ctx context.Context, in *sessionv1.UpdateSessionRequest) (*sessionv1.Session, error)
	extendFn func(ctx context.Context, in *sessionv1.ExtendTTLRequest) (*sessionv1.ExtendTTLResponse, error)
	deleteFn func(ctx context.Context, in *sessionv1.DeleteSessionRequest) (*emptypb.Empty, error)
}

func (b linBuggy) GetSession(ctx context.Context, in *sessionv1.GetSessionRequest, opts ...grpc.CallOption) (*sessionv1.Session, error) {
	if b.getFn != nil {
		return b.getFn(ctx, in)
	}
	return b.StorageServiceClient.GetSession(ctx, in, opts...)
}

func (b linBuggy) CreateSession(ctx context.Context, in *sessionv1.CreateSessionRequest, opts ...grpc.CallOption) (*sessionv1.Session, error) {
	if b.createFn != nil {
		return b.createFn(ctx, in)
	}
	return b.StorageServiceClient.CreateSession(ctx, in, opts...)
}

func (b linBuggy) UpdateSession(ctx context.Context, in *sessionv1.UpdateSessionRequest, opts ...grpc.CallOption) (*sessionv1.Session, error) {
	if b.updateFn != nil {
		return b.updateFn(ctx, in)
	}
	return b.StorageServiceClient.UpdateSession(ctx, in, opts...)
}

func (b linBuggy) ExtendTTL(ctx context.Context, in *sessionv1.ExtendTTLRequest, opts ...grpc.CallOption) (*sessionv1.ExtendTTLResponse, error) {
	if b.extendFn != nil {
		return b.extendFn(ctx, in)
	}
	return b.StorageServiceClient.ExtendTTL(ctx, in, opts...)
}

func (b linBuggy) DeleteSession(ctx context.Context, in *sessionv1.DeleteSessionRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	if b.deleteFn != nil {
		return b.deleteFn(ctx, in)
	}
	return b.StorageServiceClient.DeleteSession(ctx, in, opts...)
}

// linPlanted are the bugs. Each is there for some of the calls only, as bugs
// are.
var linPlanted = map[string]func(sessionv1.StorageServiceClient) sessionv1.StorageServiceClient{
	"none": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient { return s },
	"a read from a cache that nobody is told of": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		var cache sync.Map
		return linBuggy{StorageServiceClient: s, getFn: func(ctx context.Context, in *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
			if old, ok := cache.Load(in.GetId()); ok && rand.IntN(3) == 0 {
				return old.(*sessionv1.Session), nil
			}
			out, err := s.GetSession(ctx, in)
			if err == nil {
				cache.Store(in.GetId(), out)
			}
			return out, err
		}}
	},
	"an update that is acknowledged and lost": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, updateFn: func(ctx context.Context, in *sessionv1.UpdateSessionRequest) (*sessionv1.Session, error) {
			out, err := s.GetSession(ctx, &sessionv1.GetSessionRequest{Id: in.GetId()})
			if err != nil || in.GetEtag() != "" || rand.IntN(2) == 0 {
				return s.UpdateSession(ctx, in)
			}
			out.Data, out.Revision = in.GetSession().GetData(), out.GetRevision()+1
			return out, nil
		}}
	},
	"an update that is sent twice": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, updateFn: func(ctx context.Context, in *sessionv1.UpdateSessionRequest) (*sessionv1.Session, error) {
			if in.GetEtag() == "" {
				_, _ = s.UpdateSession(ctx, in)
			}
			return s.UpdateSession(ctx, in)
		}}
	},
	"an expected revision that is not looked at": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, updateFn: func(ctx context.Context, in *sessionv1.UpdateSessionRequest) (*sessionv1.Session, error) {
			in, _ = proto.Clone(in).(*sessionv1.UpdateSessionRequest)
			in.Etag = ""
			return s.UpdateSession(ctx, in)
		}}
	},
	"an extension that is acknowledged and lost": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, extendFn: func(ctx context.Context, in *sessionv1.ExtendTTLRequest) (*sessionv1.ExtendTTLResponse, error) {
			out, err := s.GetSession(ctx, &sessionv1.GetSessionRequest{Id: in.GetId()})
			if err != nil || rand.IntN(2) == 0 {
				return s.ExtendTTL(ctx, in)
			}
			return &sessionv1.ExtendTTLResponse{
				Outcome: sessionv1.ExtendTTLResponse_EXTENDED, After: &sessionv1.TTL{ExtensionCount: out.GetExtensionCount() + 1},
			}, nil
		}}
	},
	"a report that extends twice": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, extendFn: func(ctx context.Context, in *sessionv1.ExtendTTLRequest) (*sessionv1.ExtendTTLResponse, error) {
			_, _ = s.ExtendTTL(ctx, &sessionv1.ExtendTTLRequest{Id: in.GetId(), EventId: in.GetEventId() + "-again"})
			return s.ExtendTTL(ctx, in)
		}}
	},
	"a deletion that is acknowledged and lost": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, deleteFn: func(ctx context.Context, in *sessionv1.DeleteSessionRequest) (*emptypb.Empty, error) {
			_, err := s.GetSession(ctx, &sessionv1.GetSessionRequest{Id: in.GetId()})
			return &emptypb.Empty{}, err
		}}
	},
	"a deleted session that comes back": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		var gone sync.Map
		return linBuggy{
			StorageServiceClient: s,
			deleteFn: func(ctx context.Context, in *sessionv1.DeleteSessionRequest) (*emptypb.Empty, error) {
				if old, err := s.GetSession(ctx, &sessionv1.GetSessionRequest{Id: in.GetId()}); err == nil {
					gone.Store("last", old)
				}
				return s.DeleteSession(ctx, in)
			},
			createFn: func(ctx context.Context, in *sessionv1.CreateSessionRequest) (*sessionv1.Session, error) {
				if old, ok := gone.LoadAndDelete("last"); ok {
					return old.(*sessionv1.Session), nil
				}
				return s.CreateSession(ctx, in)
			},
		}
	},
	"not found for a session that is there": func(s sessionv1.StorageServiceClient) sessionv1.StorageServiceClient {
		return linBuggy{StorageServiceClient: s, getFn: func(ctx context.Context, in *sessionv1.GetSessionRequest) (*sessionv1.Session, error) {
			if rand.IntN(10) == 0 {
				return nil, status.Error(codes.NotFound, "there is no such session")
			}
			return s.GetSession(ctx, in)
		}}
	},
}
