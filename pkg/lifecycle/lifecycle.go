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

// Group is a stack of parts: workers, which run until they are told to stop,
// and closers. When the context ends or a worker fails, the parts are taken
// down one by one, the last registered first: a worker is cancelled and
// awaited, a closer is called. So what was registered first, and others rest
// on, goes last.
//
//	New -> Go/OnClose -> Run: running -> (ctx ends | a worker fails)
//	    -> parts down in reverse -> done
//
// A Group is used once and is not safe for concurrent registration.
type Group struct {
	log   *slog.Logger
	grace time.Duration
	parts []part
}

// part is a worker (run) or a closer (close).
type part struct {
	name  string
	run   func(ctx context.Context) error
	close func(ctx context.Context) error

	cancel context.CancelFunc
	done   chan struct{}
}

// NewGroup returns an empty group that has grace in all to go down.
func NewGroup(log *slog.Logger, grace time.Duration) *Group {
	return &Group{log: log, grace: grace}
}

// Go registers a worker. It must return soon after its context ends; returning
// nil before is fine and stops nobody else.
func (g *Group) Go(name string, run func(ctx context.Context) error) {
	g.parts = append(g.parts, part{name: name, run: run})
}

// OnClose registers a closer. Its context ends when the group's grace is over.
func (g *Group) OnClose(name string, closeFn func(ctx context.Context) error) {
	g.parts = append(g.parts, part{name: name, close: closeFn})
}

// Run starts the workers and blocks until everything is down. It returns the
// joined errors of workers and closers; the end of ctx is no error.
func (g *Group) Run(ctx context.Context) error {
	// Parts outlive ctx until it is their turn: a server has to answer what it
	// accepted before the store under it goes away.
	detached := context.WithoutCancel(ctx)
	stop, requestStop := context.WithCancel(ctx)
	defer requestStop()
	var (
		mu   sync.Mutex
		errs []error
	)
	fail := func(what, name string, err error) bool {
		if err == nil || errors.Is(err, context.Canceled) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, fmt.Errorf("%s %s: %w", what, name, err))
		return true
	}
	for i := range g.parts {
		p := &g.parts[i]
		if p.run == nil {
			continue
		}
		working, cancel := context.WithCancel(detached)
		p.cancel, p.done = cancel, make(chan struct{})
		go func() {
			defer close(p.done)
			if fail("run", p.name, recovered(working, p.run)) {
				requestStop()
			}
		}()
	}
	<-stop.Done()

	closing, cancel := context.WithTimeout(detached, g.grace)
	defer cancel()
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := &g.parts[i]
		g.log.DebugContext(closing, "stopping", slog.String("part", p.name))
		if p.close != nil {
			fail("close", p.name, p.close(closing))
			continue
		}
		p.cancel()
		select {
		case <-p.done:
		case <-closing.Done():
			fail("stop", p.name, closing.Err())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(errs...)
}

// recovered turns a worker's panic into an error, so that the others are still
// closed in order.
func recovered(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return run(ctx)
}
