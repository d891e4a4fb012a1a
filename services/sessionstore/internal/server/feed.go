package server

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/auth"
	"github.com/livinguniverse/stoker/pkg/rpc"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// feedPage bounds the entries of one message.
const feedPage = 1000

// Feed delivers the feed to a consumer of a group.
func (s *Server) Feed(stream grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]) error {
	if p := auth.FromContext(stream.Context()); !p.Anonymous && !p.Service {
		return rpc.Error(codes.PermissionDenied, "NOT_YOURS", "only services may read the feed", nil, 0)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetOpen() == nil {
		return rpc.FieldViolation("open", "", "group and consumer in the first message")
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.cfg.Stopping, func() { cancel(storage.ErrClosed) })()
	reader, err := s.cfg.Store.OpenFeed(ctx, first.GetOpen().GetGroup(), first.GetOpen().GetConsumer())
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, storage.ErrClosed) {
			err = cause // it is not the caller that has left
		}
		return err
	}
	f := &feedStream{stream: stream, reader: reader, granted: make(chan struct{}, 1), answered: make(chan struct{})}
	f.grant(first.GetCredits())
	// The receiver ends with the stream, which ends when this handler returns.
	go func() { cancel(f.receive(ctx)) }()
	err = f.send(ctx)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, reader.Close())
}

// feedStream is one consumer's stream.
type feedStream struct {
	stream grpc.BidiStreamingServer[sessionv1.FeedRequest, sessionv1.FeedResponse]
	reader storage.FeedReader

	mu      sync.Mutex
	credits int
	granted chan struct{} // buffered: a grant is never missed

	// answered is closed once the first message has gone out.
	answered chan struct{}
}

// maxCredits bounds what a consumer can hold.
const maxCredits = 1_000_000

func (f *feedStream) grant(n int32) {
	f.mu.Lock()
	f.credits = min(maxCredits, f.credits+int(n))
	f.mu.Unlock()
	select {
	case f.granted <- struct{}{}:
	default:
	}
}

// mayAnswer says whether there are credits for a message.
func (f *feedStream) mayAnswer() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.credits > 0
}

// receive takes credits and acknowledgements until the client closes its side;
// io.EOF then ends the stream, though not before the first message has gone
// out: a client that asks once and closes is answered.
func (f *feedStream) receive(ctx context.Context) error {
	for {
		req, err := f.stream.Recv()
		if errors.Is(err, io.EOF) && f.mayAnswer() {
			select {
			case <-f.answered:
			case <-ctx.Done():
			}
		}
		if err != nil {
			return err
		}
		if len(req.GetAcks()) > 0 {
			acks := make([]storage.FeedAck, len(req.GetAcks()))
			for i, a := range req.GetAcks() {
				acks[i] = storage.FeedAck{Shard: int(a.GetShard()), Cursor: a.GetCursor()}
			}
			if err := f.reader.Ack(ctx, acks); err != nil {
				return err
			}
		}
		f.grant(req.GetCredits())
	}
}

// send delivers while there are credits.
func (f *feedStream) send(ctx context.Context) error {
	answered := sync.OnceFunc(func() { close(f.answered) })
	for {
		f.mu.Lock()
		limit := min(f.credits, feedPage)
		f.mu.Unlock()
		if limit == 0 {
			select {
			case <-f.granted:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		b, err := f.reader.Next(ctx, limit)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.credits -= len(b.Entries)
		f.mu.Unlock()
		resp := &sessionv1.FeedResponse{Entries: b.Entries, Assignment: b.Changed}
		for _, n := range b.Shards {
			resp.Shards = append(resp.Shards, int32(n))
		}
		if err := f.stream.Send(resp); err != nil {
			return err
		}
		answered()
	}
}
