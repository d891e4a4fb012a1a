package redis

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
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
	// ClassFree is for what Redis does also when its memory is full: it frees memory,
	// or keeps what there is in use.
	ClassFree = "free"
)

// guard is a go-redis hook of one node's client: every round trip runs under
// the breaker of its class and node, and under a deadline of its own. Callers
// come and go meanwhile: one that leaves is no verdict on the node, and a batch
// may hold the commands of many.
type guard struct {
	// breaker is that of the server that the client leads to now.
	breaker atomic.Pointer[resilience.Breaker]
	timeout time.Duration
	// again: a round trip that failed on a connection which had ended while it was idle
	// is made again, on another one.
	again   bool
	starved *starvation
	// login is called with the error of a connection that could not log in; may be nil.
	login func(ctx context.Context, refusal error)
	// server is the one that the client leads to now.
	server func() *server
	// opened is called when the server's breaker has opened, or the server is not
	// the right one.
	opened func(ctx context.Context)
}

var _ goredis.Hook = (*guard)(nil)

func newGuard(b *resilience.Breaker, timeout time.Duration, again bool) *guard {
	g := &guard{timeout: timeout, again: again}
	g.breaker.Store(b)
	return g
}

// guarded marks the context of a round trip under way: a new connection's
// handshake is a part of it, and must not ask for another permit.
type guarded struct{}

// pastBreakers returns the context of a round trip that no breaker judges: a part of
// one that is judged already, or one that says nothing about the server's health.
func pastBreakers(ctx context.Context) context.Context {
	return context.WithValue(ctx, guarded{}, true)
}

// limit bounds a round trip, making a connection included: by the timeout, and by as
// much again where this process did not get to run for that long of late. The wait for a
// reply is extended further while it does not (see link).
func (g *guard) limit() time.Duration {
	return g.timeout + g.starved.recent(extensionsRecent*g.timeout)
}

// run makes one round trip, which returns its outcome and an error that says most
// about it. The error is the breaker's, when that rejects the round trip.
func (g *guard) run(ctx context.Context, trip func(ctx context.Context) (resilience.Outcome, error)) error {
	ctx = pastBreakers(context.WithoutCancel(ctx))
	breaker := g.breaker.Load()
	faulty, retiring, refused := false, false, false
	rejected := breaker.Guard(func() resilience.Outcome {
		out, err := g.attempt(ctx, trip)
		if g.again && isStale(err) {
			// Others from the same time have mostly ended too.
			g.server().retire()
			out, err = g.attempt(ctx, trip)
		}
		if isRefusedLogin(err) && g.login != nil {
			g.login(ctx, err)
		}
		faulty, retiring, refused = out == resilience.Fault, isRetiring(err), isRefusedLogin(err)
		return out
	})
	if retiring {
		g.server().retireOften()
		g.opened(ctx)
	} else if faulty && breaker.Status().State == resilience.Open {
		if !refused {
			g.server().retire() // probes are made on new connections
		}
		g.opened(ctx)
	}
	return rejected
}

func (g *guard) attempt(ctx context.Context, trip func(ctx context.Context) (resilience.Outcome, error)) (resilience.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, g.limit())
	defer cancel()
	return trip(ctx)
}

// probeCommand returns a command that changes nothing, and that a server refuses when
// it refuses the calls of the lane: a script that may write is refused by a replica, and
// one without allow-oom when memory is full.
func (l *lane) probeCommand(ctx context.Context) *goredis.Cmd {
	switch l.class {
	case ClassWrite:
		return goredis.NewCmd(ctx, "eval", "#!lua\nreturn 1", 0)
	case ClassFree:
		return goredis.NewCmd(ctx, "eval", allowFull+"return 1", 0)
	default:
		return goredis.NewCmd(ctx, "ping")
	}
}

// probe makes the calls that close a breaker which is due for them.
func (g *guard) probe(call func() error) {
	for {
		st := g.breaker.Load().Status()
		if !st.ProbeDue && st.State != resilience.HalfOpen || call() != nil {
			return
		}
	}
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
		rejected := g.run(ctx, func(ctx context.Context) (resilience.Outcome, error) {
			cmd.SetErr(nil)
			err = next(ctx, cmd)
			return outcomeOf(err), err
		})
		if rejected != nil {
			cmd.SetErr(rejected)
			return rejected
		}
		return err
	}
}

// ProcessPipelineHook guards a batch: one round trip, one outcome.
func (g *guard) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if ctx.Value(guarded{}) != nil {
			return next(ctx, cmds)
		}
		var err error
		heard, listeners := overhear(cmds)
		rejected := g.run(ctx, func(ctx context.Context) (resilience.Outcome, error) {
			for i := range heard {
				heard[i].err = nil
			}
			err = next(ctx, listeners)
			return outcomeOfBatch(err, heard)
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

// outcomeOfBatch is the worst outcome of a batch that ended with err, and its error.
func outcomeOfBatch(err error, cmds []overheard) (resilience.Outcome, error) {
	out, why := outcomeOf(err), err
	for i := range cmds {
		if out == resilience.Fault && isRetiring(why) {
			break
		}
		if err := cmds[i].err; err != nil && !errors.Is(err, goredis.Nil) {
			if o := outcomeOf(err); o == resilience.Fault || out == resilience.Success && o != out {
				out, why = o, err
			}
		}
	}
	return out, why
}
