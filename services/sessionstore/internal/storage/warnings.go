package storage

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Warning is a property of a backend's configuration or state that endangers data
// or deadlines.
type Warning struct {
	// Code names the kind, such as "eviction-policy".
	Code string
	// Node is the server that it is about, empty for the whole backend.
	Node string
	// Message says what was found, what it endangers, and what to set instead.
	Message string
	// Since is when this process first saw it.
	Since time.Time
}

// MaxWarnings bounds the warnings that are kept; further ones are only logged.
const MaxWarnings = 64

// WarningBoard keeps the warnings that hold now. It is safe for concurrent use.
type WarningBoard struct {
	log   *slog.Logger
	clock func() time.Time

	mu sync.Mutex
	by map[warningKey]Warning
}

type warningKey struct{ code, node string }

// NewWarningBoard returns an empty board, which logs each warning when it is raised,
// when its message changes and when it is cleared.
func NewWarningBoard(log *slog.Logger, clock func() time.Time) *WarningBoard {
	return &WarningBoard{log: log, clock: clock, by: map[warningKey]Warning{}}
}

// Raise adds a warning, or changes its message. Raising the same warning again does
// nothing.
func (b *WarningBoard) Raise(ctx context.Context, code, node, message string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := warningKey{code, node}
	w, known := b.by[key]
	if known && w.Message == message {
		return
	}
	if !known {
		w = Warning{Code: code, Node: node, Since: b.clock()}
	}
	w.Message = message
	if known || len(b.by) < MaxWarnings {
		b.by[key] = w
	}
	b.log.WarnContext(ctx, "store warning raised", slog.String("code", code), slog.String("node", node), slog.String("warning", message))
}

// Clear removes a warning; one that is not there is no error.
func (b *WarningBoard) Clear(ctx context.Context, code, node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := warningKey{code, node}
	if _, known := b.by[key]; !known {
		return
	}
	delete(b.by, key)
	b.log.InfoContext(ctx, "store warning cleared", slog.String("code", code), slog.String("node", node))
}

// ClearOthers removes the warnings of a code about all servers but those.
func (b *WarningBoard) ClearOthers(ctx context.Context, code string, nodes map[string]bool) {
	for _, w := range b.List() {
		if w.Code == code && !nodes[w.Node] {
			b.Clear(ctx, code, w.Node)
		}
	}
}

// ClearNode removes every warning about a server that has left.
func (b *WarningBoard) ClearNode(ctx context.Context, node string) {
	for _, w := range b.List() {
		if w.Node == node {
			b.Clear(ctx, w.Code, node)
		}
	}
}

// List returns the warnings by code and node.
func (b *WarningBoard) List() []Warning {
	b.mu.Lock()
	out := make([]Warning, 0, len(b.by))
	for _, w := range b.by {
		out = append(out, w)
	}
	b.mu.Unlock()
	return MergeWarnings(out)
}

// MergeWarnings returns warnings of several layers by code and node, at most
// MaxWarnings.
func MergeWarnings(of ...[]Warning) []Warning {
	out := slices.Concat(of...)
	slices.SortFunc(out, func(x, y Warning) int {
		return cmp.Or(cmp.Compare(x.Code, y.Code), cmp.Compare(x.Node, y.Node))
	})
	return out[:min(len(out), MaxWarnings)]
}
