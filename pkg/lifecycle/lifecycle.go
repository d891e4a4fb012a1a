// Package lifecycle runs the workers of a process and takes them down in order.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Group is a set of workers and closers. Workers run until the context ends or
// one of them fails; closers then run one by one, the last registered first,
// so that what was opened first is closed last.
//
//	New -> Go/OnClose -> Run: running -> (ctx ends | a worker fails)
//	    -> closers in reverse -> workers cancelled and awaited -> done
//
// A Group is used once and is not safe for concurrent registration.
type Group struct {
	log     *slog.Logger
	grace   time.Duration
	workers []worker
	closers []closer
}

type worker struct {
	name string
	run  func(ctx context.Context) error
}

type closer struct {
	name  string
	close func(ctx context.Context) error
}

// NewGroup returns an empty group whose closers have grace in all.
func NewGroup(log *slog.Logger, grace time.Duration) *Group {
	return &Group{log: log, grace: grace}
}

// Go registers a worker. It must return soon after its context ends; returning
// nil before is fine and stops nobody else.
func (g *Group) Go(name string, run func(ctx context.Context) error) {
	g.workers = append(g.workers, worker{name, run})
}

// OnClose registers a closer. It runs while the workers registered before it
// still run; its context ends when the group's grace is over.
func (g *Group) OnClose(name string, closeFn func(ctx context.Context) error) {
	g.closers = append(g.closers, closer{name, closeFn})
}

// Run starts the workers and blocks until everything is down. It returns the
// joined errors of workers and closers; the end of ctx is no error.
func (g *Group) Run(ctx context.Context) error {
	// Workers outlive ctx until the closers have run: a server has to answer
	// what it accepted before the stores under it go away.
	working, cancelWorkers := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWorkers()
	stop, requestStop := context.WithCancel(ctx)
	defer requestStop()

	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	fail := func(what, name string, err error) {
		if err == nil || errors.Is(err, context.Canceled) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, fmt.Errorf("%s %s: %w", what, name, err))
	}
	for _, w := range g.workers {
		wg.Go(func() {
			if err := recovered(working, w); err != nil {
				fail("run", w.name, err)
				requestStop()
			}
		})
	}
	<-stop.Done()

	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), g.grace)
	defer cancelClosing()
	for i := len(g.closers) - 1; i >= 0; i-- {
		c := g.closers[i]
		g.log.DebugContext(closing, "closing", slog.String("part", c.name))
		fail("close", c.name, c.close(closing))
	}
	cancelWorkers()
	wg.Wait()
	return errors.Join(errs...)
}

// recovered turns a worker's panic into an error, so that the others are still
// closed in order.
func recovered(ctx context.Context, w worker) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return w.run(ctx)
}
