package consumer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

type feedStream = grpc.BidiStreamingClient[sessionv1.FeedRequest, sessionv1.FeedResponse]

// feedLoop keeps a feed stream open until flushed is closed, which comes
// some time after the end of ctx, or ctx ends while there is none.
func (c *Consumer) feedLoop(ctx, working context.Context, flushed <-chan struct{}) {
	pause := backoff{least: c.cfg.BackoffMin, most: c.cfg.BackoffMax}
	for ctx.Err() == nil {
		err := c.readFeed(ctx, working, flushed, pause.reset)
		c.connected.Store(false)
		// What was not acknowledged comes again, here or elsewhere.
		c.tracker.Reset()
		if errors.Is(err, errDrained) {
			return
		}
		if ctx.Err() != nil {
			break
		}
		c.metrics.reconnects.Add(working, 1)
		wait := pause.pause()
		c.log.WarnContext(ctx, "feed broke, connecting again", slog.Any("error", err), slog.Duration("in", wait))
		if sleep(ctx, wait) != nil {
			break
		}
	}
	<-flushed
}

// readFeed opens the feed and reads it until it breaks or all is reported.
func (c *Consumer) readFeed(ctx, working context.Context, flushed <-chan struct{}, opened func()) error {
	streaming, cancel := context.WithCancel(working)
	defer cancel()
	stream, err := c.store.Feed(streaming)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	var granted atomic.Int64
	received := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { received <- c.receive(ctx, stream, &granted, opened) })

	err = c.send(ctx, stream, &granted, flushed, received)
	if !errors.Is(err, errDrained) {
		return err
	}
	// The server has everything once it ends the stream, too.
	if stream.CloseSend() == nil {
		select {
		case err = <-received:
			c.log.DebugContext(ctx, "feed closed", slog.Any("answer", err))
		case <-time.After(c.cfg.CallTimeout):
		}
	}
	return errDrained
}

// receive takes entries until the stream ends.
func (c *Consumer) receive(ctx context.Context, stream feedStream, granted *atomic.Int64, opened func()) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the store ended the feed")
			}
			return err
		}
		if !c.connected.Swap(true) {
			opened()
			c.log.InfoContext(ctx, "reading the feed", slog.String("group", c.cfg.Group), slog.String("consumer", c.cfg.Name))
		}
		if m.GetAssignment() {
			c.log.DebugContext(ctx, "shards assigned", slog.Any("shards", m.GetShards()))
			c.tracker.Assigned(m.GetShards())
		}
		// Past the end, nothing new is taken on: it stays for whoever is next.
		if len(m.GetEntries()) > 0 && ctx.Err() == nil {
			c.tracker.Observe(m.GetEntries(), c.nowMillis())
			wake(c.wakeFlush)
		}
		// After Observe: an entry must not be missing from both counts.
		granted.Add(-int64(len(m.GetEntries())))
		wake(c.wakeSend)
	}
}

// maxAcks and maxCredits are the protocol's bounds for one message.
const (
	maxAcks    = 4096
	maxCredits = 1_000_000
)

// send opens the feed, then acknowledges and grants credits as they become
// possible, until the stream breaks or all is reported.
func (c *Consumer) send(ctx context.Context, stream feedStream, granted *atomic.Int64, flushed <-chan struct{}, received <-chan error) error {
	open := &sessionv1.FeedRequest_Open{Group: c.cfg.Group, Consumer: c.cfg.Name}
	if err := stream.Send(&sessionv1.FeedRequest{Open: open, Credits: c.grant(ctx, granted)}); err != nil {
		return broken(err, received)
	}
	var acks []tracker.Ack
	for {
		acks = c.tracker.Acks(acks[:0])
		if err := c.sendAcks(stream, acks, c.grant(ctx, granted)); err != nil {
			return broken(err, received)
		}
		select {
		case err := <-received:
			return err
		case <-c.wakeSend:
		case <-flushed:
			if err := c.sendAcks(stream, c.tracker.Acks(nil), 0); err != nil {
				return broken(err, received)
			}
			return errDrained
		}
	}
}

func (c *Consumer) sendAcks(stream feedStream, acks []tracker.Ack, credits int32) error {
	for len(acks) > 0 || credits > 0 {
		req := &sessionv1.FeedRequest{Credits: credits}
		n := min(len(acks), maxAcks)
		for _, a := range acks[:n] {
			req.Acks = append(req.Acks, &sessionv1.FeedRequest_Ack{Shard: a.Shard, Cursor: a.Cursor})
		}
		if err := stream.Send(req); err != nil {
			return err
		}
		acks, credits = acks[n:], 0
	}
	return nil
}

// grant returns how many more entries the store may send. Small grants are
// saved up, so that not every entry costs a message.
func (c *Consumer) grant(ctx context.Context, granted *atomic.Int64) int32 {
	if ctx.Err() != nil || c.tracker.Full() {
		return 0
	}
	have := granted.Load()
	room := int64(c.cfg.Window) - int64(c.tracker.Outstanding()) - have
	if room <= 0 || (have > 0 && room < int64(c.cfg.Window)/8) {
		return 0
	}
	room = min(room, maxCredits)
	granted.Add(room)
	return int32(room)
}

// broken prefers the error that the stream ended with: Send says only EOF.
func broken(err error, received <-chan error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	select {
	case err = <-received:
	case <-time.After(time.Second):
	}
	return err
}
