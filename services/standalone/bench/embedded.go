package bench

import (
	"context"

	"github.com/spf13/pflag"

	"github.com/livinguniverse/stoker/services/sessionstore"
)

// ofAppendOne is the comparison of single events.
const ofAppendOne = "AppendEvents, 1 a call"

// embedded adds the stores without Redis: to the comparison of reads, and as a
// comparison of single appends.
func (b *bench) embedded(ctx context.Context, onRedis *fixture, base *baselines, reads *comparison) (comparison, error) {
	inMemory, err := b.fixture(ctx, nil, "--storage", "memory")
	if err != nil {
		return comparison{}, err
	}
	durable, err := b.fixture(ctx, nil, "--storage", "memory", "--durable")
	if err != nil {
		return comparison{}, err
	}
	reads.Contenders = append(reads.Contenders, contender{Name: byEmbedded, Server: inMemory.store.process, Do: getSession(inMemory.store, inMemory)})
	return comparison{Name: ofAppendOne, Item: "event", Callers: []int{usual, 512}, Contenders: []contender{
		{Name: byEcho, Server: base.echo.process, Do: appendEvents(base.echo, onRedis, 1)},
		{Name: byStoker, Server: onRedis.store.process, Redis: onRedis.redis, Do: appendEvents(onRedis.store, onRedis, 1)},
		{Name: byEmbedded, Server: inMemory.store.process, Do: appendEvents(inMemory.store, inMemory, 1)},
		{Name: byDurable, Server: durable.store.process, Do: appendEvents(durable.store, durable, 1)},
	}}, nil
}

// cached adds the store with its near-cache, where it has one.
func (b *bench) cached(ctx context.Context, f *fixture, reads *comparison) error {
	var cfg sessionstore.Config
	fs := pflag.NewFlagSet("store", pflag.ContinueOnError)
	cfg.Flags(fs)
	flag := fs.Lookup("read-cache")
	if flag == nil {
		return nil
	}
	value := "true"
	if flag.Value.Type() == "duration" {
		value = "1s"
	}
	s, err := b.lab.serve(ctx, "store", "--redis-url", f.redis.url(0), "--read-cache="+value)
	if err != nil {
		return err
	}
	reads.Contenders = append(reads.Contenders, contender{Name: byCached, Server: s.process, Redis: f.redis, Do: getSession(s, f)})
	return nil
}

// fixture starts a store and makes the usual sessions in it.
func (b *bench) fixture(ctx context.Context, r *redis, args ...string) (*fixture, error) {
	s, err := b.lab.serve(ctx, "store", args...)
	if err != nil {
		return nil, err
	}
	return newFixture(ctx, s, r, pool)
}
