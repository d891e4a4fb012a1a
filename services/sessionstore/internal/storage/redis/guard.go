package redis

import (
	"context"
	"errors"
	"net"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// Classes of operations, each with connections and breakers of its own, so that
// one does not starve the others.
const (
	ClassRead   = "read"
	ClassWrite  = "write"
	ClassStream = "stream"
)

// guard is a go-redis hook of one node's client: every round trip runs under
// the breaker of its class and node, and under a deadline of its own. Callers
// come and go meanwhile: one that leaves is no verdict on the node, and a batch
// may hold the commands of many.
type guard struct {
	breaker *resilience.Breaker
	timeout time.Duration
	// opened is told that the node's breaker has opened.
	opened func(ctx context.Context)
}

var _ goredis.Hook = (*guard)(nil)

// guarded marks the context of a round trip under way: a new connection's
// handshake is a part of it, and must not ask for another permit.
type guarded struct{}

// run makes one round trip, which says whether it met a fault. The error is the
// breaker's, when it turns the round trip away.
func (g *guard) run(ctx context.Context, trip func(ctx context.Context) (fault bool)) error {
	ctx = context.WithValue(context.WithoutCancel(ctx), guarded{}, true)
	faulty := false
	rejected := g.breaker.Guard(func() bool {
		ctx, cancel := context.WithTimeout(ctx, g.timeout)
		defer cancel()
		faulty = trip(ctx)
		return faulty
	})
	if faulty && g.breaker.Status().State == resilience.Open {
		g.opened(ctx)
	}
	return rejected
}

// DialHook leaves dialing alone: it happens inside a round trip.
func (g *guard) DialHook(next goredis.DialHook) goredis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook guards a single command.
func (g *guard) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if ctx.Value(guarded{}) != nil {
			return next(ctx, cmd)
		}
		var err error
		rejected := g.run(ctx, func(ctx context.Context) bool {
			err = next(ctx, cmd)
			return isFault(err)
		})
		if rejected != nil {
			cmd.SetErr(rejected)
			return rejected
		}
		return err
	}
}

// ProcessPipelineHook guards a batch: one round trip, one verdict.
func (g *guard) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if ctx.Value(guarded{}) != nil {
			return next(ctx, cmds)
		}
		var err error
		heard, listeners := overhear(cmds)
		rejected := g.run(ctx, func(ctx context.Context) bool {
			err = next(ctx, listeners)
			return isFault(err) || anyFault(heard)
		})
		if rejected != nil {
			for _, cmd := range cmds {
				cmd.SetErr(rejected)
			}
			return rejected
		}
		return err
	}
}

// overheard is a command whose error the guard hears as it is set. Asking for it
// would take as long as the whole command does: in a batch that go-redis made by
// itself, Err finds out by the text of a stack trace whether it may answer.
type overheard struct {
	goredis.Cmder
	err error
}

// SetErr hears the error, and passes it on.
func (o *overheard) SetErr(err error) {
	o.err = err
	o.Cmder.SetErr(err)
}

// overhear returns what stands for the commands of a batch, twice.
func overhear(cmds []goredis.Cmder) ([]overheard, []goredis.Cmder) {
	heard, listeners := make([]overheard, len(cmds)), make([]goredis.Cmder, len(cmds))
	for i, cmd := range cmds {
		heard[i].Cmder = cmd
		listeners[i] = &heard[i]
	}
	return heard, listeners
}

func anyFault(cmds []overheard) bool {
	for i := range cmds {
		if err := cmds[i].err; err != nil && !errors.Is(err, goredis.Nil) && isFault(err) {
			return true
		}
	}
	return false
}
