package bench

import (
	"context"
	"errors"
	"fmt"
)

// Names of contenders, which targets refer to.
const (
	byEcho      = "gRPC echo"
	byPlain     = "plain gRPC service"
	byStoker    = "Stoker on Redis"
	byEmbedded  = "Stoker embedded"
	byDurable   = "Stoker embedded, durable"
	byCached    = "Stoker on Redis, near-cache"
	byClient    = "go-redis alone"
	byPipelined = "go-redis alone, auto-pipelined"
)

// Names of comparisons.
const (
	ofGet    = "GetSession"
	ofExtend = "ExtendTTL"
	ofBatch  = "BatchExtendTTL, 200 a call"
	ofAppend = "AppendEvents, 50 a call"
)

// usual is the number of callers that targets are about.
const usual = 64

// comparison is the same thing done by several contenders, who take turns.
type comparison struct {
	Name string
	// Item is what one operation is.
	Item       string
	Callers    []int
	Contenders []contender
}

// share of the time that a phase gets: the callers of the targets get twice
// that of others.
func (c comparison) share(callers int) float64 {
	if callers == usual || len(c.Callers) == 1 {
		return 1
	}
	return 0.5
}

// phases is how many shares a round of the comparison takes.
func (c comparison) phases() float64 {
	sum := 0.0
	for _, n := range c.Callers {
		sum += c.share(n) * float64(len(c.Contenders))
	}
	return sum
}

var allCallers = []int{1, usual, 512}

// onRedis compares Stoker on Redis with the baselines.
func (l *lab) onRedis(f *fixture, b *baselines) ([]comparison, error) {
	direct := l.directly(f.redis)
	auto, err := l.pipelined(f.redis)
	if err != nil {
		return nil, err
	}
	return []comparison{
		{Name: ofGet, Item: "call", Callers: allCallers, Contenders: []contender{
			{Name: byEcho, Server: b.echo.process, Do: getSession(b.echo, f)},
			{Name: byPlain, Server: b.plain.process, Redis: f.redis, Do: getSession(b.plain, f)},
			{Name: byStoker, Server: f.store.process, Redis: f.redis, Do: getSession(f.store, f)},
			{Name: byClient, Redis: f.redis, Do: hgetall(direct, f)},
			{Name: byPipelined, Redis: f.redis, Do: hgetall(auto, f)},
		}},
		{Name: ofExtend, Item: "call", Callers: allCallers, Contenders: []contender{
			{Name: byEcho, Server: b.echo.process, Do: extendTTL(b.echo, f)},
			{Name: byPlain, Server: b.plain.process, Redis: f.redis, Do: extendTTL(b.plain, f)},
			{Name: byStoker, Server: f.store.process, Redis: f.redis, Do: extendTTL(f.store, f)},
			{Name: byClient, Redis: f.redis, Do: script(direct, b.extend, f)},
			{Name: byPipelined, Redis: f.redis, Do: script(auto, b.extend, f)},
		}},
		{Name: ofBatch, Item: "item", Callers: []int{usual}, Contenders: []contender{
			{Name: byPipelined, Redis: f.redis, Do: script(auto, b.extend, f)},
			{Name: byStoker, Server: f.store.process, Redis: f.redis, Items: extendBatch, Do: batchExtendTTL(f.store, f)},
		}},
		{Name: ofAppend, Item: "event", Callers: []int{usual}, Contenders: []contender{
			{Name: byPipelined, Redis: f.redis, Do: twoXAdds(auto, b.append, f)},
			{Name: byStoker, Server: f.store.process, Redis: f.redis, Items: appendBatch, Do: appendEvents(f.store, f, appendBatch)},
		}},
	}, nil
}

// twoXAdds appends one event to two streams, with the bytes that the store
// would write for it.
func twoXAdds(do doer, t templates, f *fixture) op {
	const idAt, logAt, feedAt = 7, 8, 9 // in the store's script: the first event's
	return func(ctx context.Context, worker, n int) error {
		id := f.pick(worker, n)
		call := t[id]
		if len(call) <= feedAt {
			return fmt.Errorf("the append script of %s has %d arguments", id, len(call))
		}
		first := make(chan error, 1)
		go func() {
			first <- do(ctx, "xadd", "bench:log:"+id, "maxlen", "~", baselineLog, "*", "i", call[idAt], "e", call[logAt])
		}()
		err := do(ctx, "xadd", "bench:feed", "maxlen", "~", baselineLog, "*", "s", id, "e", call[feedAt])
		return errors.Join(err, <-first)
	}
}
