package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	// slots bounds the round trips of batches that are under way.
	slots chan struct{}
	class string
	// single guards the one server; nil for a cluster.
	single *guard
	// nodes are a cluster's, by address: map[string]*goredis.Client; guards are theirs:
	// map[string]*guard.
	nodes, guards sync.Map

	once sync.Once
	err  error
}

// A server works one command off after the other, so what a round trip takes is
// the work of all that are under way. These bound it: at 50 µs for a script, to
// a twentieth of the default timeout, which leaves room for a busy machine.
// Without them, enough callers with large batches are enough to make every round
// trip time out, and to open the breaker of a server that is well. The batches
// of a cluster are spread over its nodes.
const (
	batchMost        = 64
	slotsMost        = 4
	slotsMostCluster = 4 * slotsMost
)

// newLane connects when first used. timeout bounds a round trip.
func newLane(c *conn, class string, opts goredis.UniversalOptions, timeout time.Duration, breakers *resilience.Registry) (*lane, error) {
	l := &lane{class: class, client: newClient(opts), slots: make(chan struct{}, slotsMost)}
	// What is written may be written twice only where the layers above say so.
	again := class == ClassRead || class == ClassStream
	var err error
	switch client := l.client.(type) {
	case *goredis.ClusterClient:
		l.slots = make(chan struct{}, slotsMostCluster)
		client.OnNewNode(func(node *goredis.Client) {
			addr := node.Options().Addr
			g := newGuard(breakers.Breaker(class, addr), timeout, again)
			s := c.server(addr)
			g.starved, g.login = c.dialer.starved, c.reportLogin
			g.server, g.opened = func() *server { return s }, l.reload
			node.AddHook(g)
			l.guards.Store(addr, g)
			l.nodes.Store(addr, node)
		})
	case *goredis.Client:
		l.single = newGuard(breakers.Breaker(class, c.endpoint.current.Load().addr), timeout, again)
		l.single.starved, l.single.login = c.dialer.starved, c.reportLogin
		l.single.server = c.endpoint.current.Load
		l.single.opened = func(context.Context) { c.endpoint.suspectServer() }
		client.AddHook(l.single)
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

// pipeline sends commands in one round trip for each node, or in several where
// there are many; each has its own error then. It returns the context's error
// when that ends first: the commands may not be looked at then, and may still
// be applied.
func (l *lane) pipeline(ctx context.Context, cmds ...goredis.Cmder) error {
	_, err := l.inOrder(ctx, cmds...)
	return err
}

// inOrder is pipeline for commands on keys of one shard whose order matters. It
// returns false where the shard's slot moves, so that they may have run in another
// order.
func (l *lane) inOrder(ctx context.Context, cmds ...goredis.Cmder) (ordered bool, err error) {
	if err := ctx.Err(); err != nil || len(cmds) == 0 {
		return true, err
	}
	if ctx.Done() == nil {
		return l.exec(ctx, cmds)
	}
	type outcome struct {
		ordered bool
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		ordered, err := l.exec(ctx, cmds)
		done <- outcome{ordered, err}
	}()
	select {
	case o := <-done:
		return o.ordered, o.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// exec waits for its turns, outside of any round trip's deadline, and sends
// nothing more once ctx has ended.
func (l *lane) exec(ctx context.Context, cmds []goredis.Cmder) (ordered bool, err error) {
	ordered = true
	for some := range slices.Chunk(cmds, batchMost) {
		sentOn, err := l.turn(ctx, some)
		if err != nil {
			return false, err
		}
		ordered = ordered && !sentOn
	}
	return ordered, nil
}

func (l *lane) turn(ctx context.Context, cmds []goredis.Cmder) (sentOn bool, err error) {
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if cluster, ok := l.client.(*goredis.ClusterClient); ok {
		return l.spread(ctx, cluster, cmds), nil
	}
	send(ctx, l.client, cmds, false)
	return false, nil
}

// send makes one round trip; each command has its own error then. asking tells
// the node of a cluster that we were sent by the one whose slot is moving.
func send(ctx context.Context, node pipeliner, cmds []goredis.Cmder, asking bool) {
	p := node.Pipeline()
	for _, cmd := range cmds {
		if asking {
			_ = p.Process(ctx, goredis.NewStatusCmd(ctx, "asking"))
		}
		_ = p.Process(ctx, cmd)
	}
	_, _ = p.Exec(ctx)
}

type pipeliner interface{ Pipeline() goredis.Pipeliner }

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
