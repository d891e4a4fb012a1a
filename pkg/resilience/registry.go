package resilience

import (
	"cmp"
	"errors"
	"slices"
	"sync"
)

// MaxBreakers bounds a registry: nodes come from what a cluster says of itself.
const MaxBreakers = 4096

// ErrNoBreaker says that there is no breaker of that name.
var ErrNoBreaker = errors.New("no such breaker")

// Registry holds the breakers of a process, one for each class and node. It is
// safe for concurrent use.
type Registry struct {
	cfg     BreakerConfig
	changed func(Change)

	mu     sync.RWMutex
	byName map[string]*Breaker
}

// NewRegistry returns an empty registry. changed, which may be nil, is called
// after each change of a breaker's state, without any lock held; it must not
// block. Changes that follow each other at once may be told in another order.
func NewRegistry(cfg BreakerConfig, changed func(Change)) *Registry {
	return &Registry{cfg: cfg.withDefaults(), changed: changed, byName: map[string]*Breaker{}}
}

// Breaker returns the breaker of a class and node; the first call makes it.
// Whoever calls often keeps what it got.
func (r *Registry) Breaker(class, node string) *Breaker {
	name := Name(class, node)
	r.mu.RLock()
	b := r.byName[name]
	r.mu.RUnlock()
	if b != nil {
		return b
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.byName[name]; b != nil {
		return b
	}
	b = newBreaker(class, node, r.cfg, r.changed)
	if len(r.byName) < MaxBreakers { // beyond, a breaker works and is not listed
		r.byName[name] = b
	}
	return b
}

// Drop forgets the breakers of a node that has left.
func (r *Registry) Drop(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, b := range r.byName {
		if b.node == node {
			delete(r.byName, name)
		}
	}
}

// List describes every breaker, by name.
func (r *Registry) List() []Status {
	r.mu.RLock()
	out := make([]Status, 0, len(r.byName))
	for _, b := range r.byName {
		out = append(out, b.Status())
	}
	r.mu.RUnlock()
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Force sets a breaker's state; it fails with ErrNoBreaker.
func (r *Registry) Force(name string, s State) (Status, error) {
	r.mu.RLock()
	b := r.byName[name]
	r.mu.RUnlock()
	if b == nil {
		return Status{}, ErrNoBreaker
	}
	b.Force(s)
	return b.Status(), nil
}

// Degraded says whether any breaker is not closed; of these classes, where any
// are given.
func (r *Registry) Degraded(classes ...string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, b := range r.byName {
		if (len(classes) == 0 || slices.Contains(classes, b.class)) && stateOf(b.inner.State()) != Closed {
			return true
		}
	}
	return false
}
