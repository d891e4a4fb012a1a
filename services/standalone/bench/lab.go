package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	// conns is how many connections callers share to each server.
	conns = 4
	// pool is how many sessions calls are spread over.
	pool = 1000
	// startTimeout bounds how long a server may take to answer.
	startTimeout = 20 * time.Second
	dataBytes    = 200
	eventBytes   = 100
)

// lab holds the servers under measurement and what calls need.
type lab struct {
	opts     Options
	sink     *sink
	dir      string
	children []*process
	closers  []func() error
}

func newLab(ctx context.Context, o Options) (*lab, error) {
	l := &lab{opts: o}
	var err error
	if l.dir, err = os.MkdirTemp("", "stoker-bench-"); err != nil {
		return nil, err
	}
	l.onClose(func() error { return os.RemoveAll(l.dir) })
	if l.sink, err = newSink(ctx); err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.onClose(l.sink.close)
	return l, nil
}

func (l *lab) onClose(f func() error) { l.closers = append(l.closers, f) }

// close ends every child, connections first.
func (l *lab) close() error {
	var errs []error
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	l.closers = nil
	return errors.Join(errs...)
}

// start starts a child that ends with the lab.
func (l *lab) start(ctx context.Context, kind string, args ...string) (*process, error) {
	p, err := spawn(ctx, l.opts.Program, l.sink.env(), kind, args...)
	if err != nil {
		return nil, err
	}
	l.children = append(l.children, p)
	l.onClose(p.stop)
	return p, nil
}

// end ends a child early: what is idle costs the others something, too.
func (l *lab) end(p *process) error {
	l.children = slices.DeleteFunc(l.children, func(c *process) bool { return c == p })
	return p.stop()
}

// healthy says which child has ended that should not have.
func (l *lab) healthy() error {
	for _, p := range l.children {
		if err := p.ended(); err != nil {
			return err
		}
	}
	return nil
}

// service is a server and the connections to it.
type service struct {
	*process
	conns   []*grpc.ClientConn
	clients []sessionv1.StorageServiceClient
}

// client is the one that a worker uses.
func (s *service) client(worker int) sessionv1.StorageServiceClient {
	return s.clients[worker%len(s.clients)]
}

// serve starts a server and connects to it.
func (l *lab) serve(ctx context.Context, kind string, args ...string) (*service, error) {
	p, err := l.start(ctx, kind, args...)
	if err != nil {
		return nil, err
	}
	s := &service{process: p}
	for range conns {
		c, err := l.dial(ctx, p.GRPC)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", kind, err), p.ended())
		}
		s.conns = append(s.conns, c)
		s.clients = append(s.clients, sessionv1.NewStorageServiceClient(c))
	}
	return s, nil
}

// dial returns a connection that is up. It is a bare one: what a client adds
// would be in every figure.
func (l *lab) dial(ctx context.Context, addr string) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, err
	}
	l.onClose(c.Close)
	c.Connect()
	for st := c.GetState(); st != connectivity.Ready; st = c.GetState() {
		if !c.WaitForStateChange(ctx, st) {
			return nil, fmt.Errorf("no connection to %s: %w", addr, ctx.Err())
		}
		c.Connect()
	}
	return c, nil
}

// redis is a Redis of its own and a client for what the benchmark itself asks.
type redis struct {
	*process
	admin *goredis.Client
}

func (l *lab) redis(ctx context.Context) (*redis, error) {
	p, err := l.start(ctx, "redis")
	if err != nil {
		return nil, err
	}
	r := &redis{process: p, admin: goredis.NewClient(&goredis.Options{Addr: p.Redis, ReadTimeout: time.Minute})}
	l.onClose(r.admin.Close)
	return r, nil
}

// url is how to connect to one of its databases.
func (r *redis) url(db int) string { return fmt.Sprintf("redis://%s/%d", r.Redis, db) }

// writeConfig puts the configuration of a plain service into a file.
func (l *lab) writeConfig(c plainConfig) (string, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	path := filepath.Join(l.dir, "plain.json")
	return path, os.WriteFile(path, raw, 0o600)
}

// fixture is a store with sessions in it, and what calls of it look like.
type fixture struct {
	store *service
	redis *redis // nil for the embedded store
	ids   []string
}

// newFixture makes n sessions in a store.
func newFixture(ctx context.Context, store *service, r *redis, n int) (*fixture, error) {
	f := &fixture{store: store, redis: r, ids: make([]string, n)}
	return f, each(n, func(i int) error {
		s, err := store.client(i).CreateSession(ctx, &sessionv1.CreateSessionRequest{
			User: fmt.Sprintf("user-%d", i), Project: "bench",
			Labels: map[string]string{"client": "web", "region": "eu-central", "tier": "standard"},
			Data:   structpb.NewStringValue(filler(dataBytes)),
		})
		f.ids[i] = s.GetId()
		return err
	})
}

// pick spreads the calls of all workers over the sessions, in strides that keep
// caches from helping.
func (f *fixture) pick(worker, n int) string { return f.ids[(worker*7919+n*104_729)%len(f.ids)] }

// baselines are the servers that stand for what one would have without Stoker.
type baselines struct {
	echo, plain *service
	extend      templates
	append      templates
}

// newBaselines starts them, on the sessions of a fixture on Redis.
func (l *lab) newBaselines(ctx context.Context, f *fixture) (*baselines, error) {
	b := &baselines{}
	var session *sessionv1.Session
	var extended *sessionv1.ExtendTTLResponse
	var err error
	b.extend, err = learn(ctx, f.redis.Redis, f.ids, func() error {
		return each(len(f.ids), func(i int) error {
			r, err := f.store.client(i).ExtendTTL(ctx, extendRequest(f.ids[i]))
			if i == 0 {
				extended = r
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	b.append, err = learn(ctx, f.redis.Redis, f.ids, func() error {
		return each(len(f.ids), func(i int) error {
			_, err := f.store.client(i).AppendEvents(ctx, appendRequest(f.ids[i], 1))
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	for i, id := range f.ids {
		s, err := f.store.client(i).GetSession(ctx, &sessionv1.GetSessionRequest{Id: id})
		if err != nil {
			return nil, err
		}
		fields, err := toHash(s)
		if err != nil {
			return nil, err
		}
		if err := f.redis.admin.HSet(ctx, plainKey(id), fields...).Err(); err != nil {
			return nil, err
		}
		session = s
	}
	raw, err := proto.Marshal(extended)
	if err != nil {
		return nil, err
	}
	path, err := l.writeConfig(plainConfig{Redis: f.redis.Redis, Scripts: b.extend, Extended: raw})
	if err != nil {
		return nil, err
	}
	if b.plain, err = l.serve(ctx, "plain", path); err != nil {
		return nil, err
	}
	args, err := samples(session, extended)
	if err != nil {
		return nil, err
	}
	b.echo, err = l.serve(ctx, "echo", args...)
	return b, err
}
