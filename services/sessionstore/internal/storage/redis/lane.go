package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// lane is the way to Redis of one class of operations: connections, breakers
// and a deadline of its own.
type lane struct {
	client goredis.UniversalClient
	// auto pipelines the commands of concurrent callers to a single server,
	// which is most of the throughput there is to win. It runs a batch under a
	// context of its own: do bounds a caller's wait. Nil where commands block,
	// and for a cluster, each node of which has its own (see cluster.go).
	auto *goredis.AutoPipeliner

	once sync.Once
	err  error
}

// newLane connects when first used. timeout bounds a round trip.
func newLane(class string, opts goredis.UniversalOptions, timeout time.Duration, breakers *resilience.Registry) (*lane, error) {
	l := &lane{client: newClient(opts)}
	hook := func(node string) *guard {
		return &guard{breaker: breakers.Breaker(class, node), timeout: timeout, opened: l.reload}
	}
	var err error
	switch client := l.client.(type) {
	case *goredis.ClusterClient:
		client.OnNewNode(func(node *goredis.Client) { node.AddHook(hook(node.Options().Addr)) })
	case *goredis.Client:
		node := client.Options().Addr
		if opts.MasterName != "" {
			node = opts.MasterName
		}
		client.AddHook(hook(node))
		if class != ClassStream {
			l.auto, err = client.AsyncAutoPipeline()
		}
	default:
		err = fmt.Errorf("unexpected client %T", l.client)
	}
	if err != nil {
		return nil, errors.Join(err, l.client.Close())
	}
	return l, nil
}

// do runs one command, through the automatic pipeline where there is one. A
// caller whose context ends first stops waiting; the command may still be
// applied.
func (l *lane) do(ctx context.Context, cmd goredis.Cmder) error {
	if err := ctx.Err(); err != nil {
		return departureError{err}
	}
	var err error
	if cluster, ok := l.client.(*goredis.ClusterClient); ok {
		err = l.route(ctx, cluster, cmd)
	} else {
		err = l.auto.Submit(ctx, cmd).WaitContext(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return departureError{err}
	}
	if err != nil {
		return err
	}
	return cmd.Err()
}

// departureError is the end of a caller's own context. It is told apart from the end
// of a round trip's, which is Redis's fault.
type departureError struct{ error }

func (d departureError) Unwrap() error { return d.error }

// pipeline sends commands in one round trip for each node; each has its own
// error then. It returns the context's error when that ends first: the commands
// may not be looked at then, and may still be applied.
func (l *lane) pipeline(ctx context.Context, cmds ...goredis.Cmder) error {
	if err := ctx.Err(); err != nil || len(cmds) == 0 {
		return err
	}
	p := l.client.Pipeline()
	for _, cmd := range cmds {
		_ = p.Process(ctx, cmd)
	}
	if ctx.Done() == nil {
		_, _ = p.Exec(ctx) // each command has its own error
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = p.Exec(ctx) // each command has its own error
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends every round trip under way. Closing twice is harmless.
func (l *lane) close() error {
	l.once.Do(func() {
		if l.auto != nil {
			l.err = l.auto.Close()
		}
		l.err = errors.Join(l.err, l.client.Close())
	})
	return l.err
}
