package consumer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/activity/internal/tracker"
)

// Config of a Consumer.
type Config struct {
	// Group and Name say who reads the feed.
	Group string
	Name  string
	// Window is how many entries may be outstanding, 1 to 1,000,000. When more
	// than half of it is, nothing waits for its flush interval any more.
	Window int
	// Batch is the most items of one call, 1 to 1,000; Parallel how many calls
	// of a kind run at once.
	Batch    int
	Parallel int
	// CallTimeout bounds one call.
	CallTimeout time.Duration
	// Grace is how long the end of Run may take to report what is pending.
	Grace time.Duration
	// BackoffMin and BackoffMax bound the pause after a failure; pauses double
	// and are jittered.
	BackoffMin, BackoffMax time.Duration
	// SweepEvery is how often unused sessions are looked for.
	SweepEvery time.Duration
	// Now is the clock.
	Now func() time.Time
}

// Consumer connects a tracker with the store. Use New.
type Consumer struct {
	cfg     Config
	store   sessionv1.StorageServiceClient
	tracker *tracker.Tracker
	log     *slog.Logger
	tracer  trace.Tracer
	metrics *metrics

	// wakeFlush and wakeSend hold at most one token each: something may be due,
	// something may be to send.
	wakeFlush, wakeSend chan struct{}
	connected           atomic.Bool
	// reports and questions hold calls back after a failure.
	reports, questions *gate
}

// New returns a consumer; it does nothing before Run.
func New(cfg Config, store sessionv1.StorageServiceClient, tr *tracker.Tracker, tel *telemetry.Telemetry) (*Consumer, error) {
	c := &Consumer{
		cfg: cfg, store: store, tracker: tr, log: tel.Log, tracer: tel.Tracer.Tracer(scope),
		wakeFlush: make(chan struct{}, 1), wakeSend: make(chan struct{}, 1),
		reports: newGate(cfg), questions: newGate(cfg),
	}
	var err error
	if c.metrics, err = newMetrics(tel.Meter, tr, cfg.Now); err != nil {
		return nil, err
	}
	return c, nil
}

// Connected says whether the feed is being read.
func (c *Consumer) Connected() bool { return c.connected.Load() }

// Run reads the feed until ctx ends, through any outage of the store. It then
// reports what is pending and acknowledges it, for at most the grace.
func (c *Consumer) Run(ctx context.Context) error {
	// The feed and the reports outlive ctx by what the end takes.
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer c.metrics.close()

	var wg sync.WaitGroup
	flushed := make(chan struct{})
	wg.Go(func() {
		defer close(flushed)
		c.flushLoop(ctx, working)
	})
	wg.Go(func() { c.sweepLoop(ctx) })
	c.feedLoop(ctx, working, flushed)
	stop()
	wg.Wait()
	return nil
}

func (c *Consumer) nowMillis() int64 { return c.cfg.Now().UnixMilli() }

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// sweepStep is how many sessions one step of a sweep looks at under the lock.
const sweepStep = 10_000

func (c *Consumer) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(c.cfg.SweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Bounded, as sessions may become idle faster than they are looked at.
		for range 1000 {
			if c.tracker.Sweep(c.nowMillis(), sweepStep) || ctx.Err() != nil {
				break
			}
		}
		wake(c.wakeSend)
	}
}

// backoff is a jittered exponential pause. It is not safe for concurrent use.
type backoff struct {
	least, most, next time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// pause returns how long to wait after one more failure: half of it is chance.
func (b *backoff) pause() time.Duration {
	b.next = min(max(2*b.next, b.least), b.most)
	return b.next/2 + rand.N(b.next/2+1)
}

// sleep waits; it returns ctx's error when that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

var errDrained = errors.New("everything is reported")
