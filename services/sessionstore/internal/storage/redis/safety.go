package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// safetyLook is the time between two looks for servers that have not been checked.
	// Every server is checked each checkInterval.
	safetyLook = 5 * time.Second
	// quietChecks is how many checks in a row a warning of evictions outlasts the
	// last of them, and how many leave out the settings that a server has refused to
	// report.
	quietChecks = 60
	// unsafePause is how long the outcome of a check that --require-safe-redis does
	// not accept stands, while callers keep asking.
	unsafePause = time.Second
)

// safety checks the settings of the servers that endanger data, and raises a warning
// for each.
type safety struct {
	s *Store
	// wake asks for a look at once.
	wake chan struct{}

	mu    sync.Mutex
	nodes map[string]*nodeSafety

	// unsafe is the latest outcome that --require-safe-redis does not accept, and at
	// when that was. They belong to the one caller that checks for all.
	unsafe *unsafeError
	at     time.Time
}

// nodeSafety is what earlier checks of a server have found.
type nodeSafety struct {
	checked bool
	runID   string
	evicted int64 // its counter at the last check
	lost    int64 // evicted since the first check
	quiet   int   // checks since the last eviction
	// noConfig counts down the checks that leave its settings out.
	noConfig int
	logged   bool // that it does not report everything
}

// unsafeError says that --require-safe-redis does not accept a server. While the store
// is open it means unavailable, since settings can be changed.
type unsafeError struct{ reasons []string }

func (e *unsafeError) Error() string {
	return "--require-safe-redis: " + strings.Join(e.reasons, "; ")
}

func (e *unsafeError) Unwrap() error { return storage.ErrUnavailable }

// inspection is the outcome of the checks of one server.
type inspection struct {
	node     string
	findings []finding
	// refused is why the server reports nothing, nil where it does.
	refused error
	// err is why it could not be asked.
	err error
}

func newSafety(s *Store) *safety {
	return &safety{s: s, wake: make(chan struct{}, 1), nodes: map[string]*nodeSafety{}}
}

// look asks for a look for servers that have not been checked.
func (sa *safety) look() {
	select {
	case sa.wake <- struct{}{}:
	default:
	}
}

// run checks every server each period, and new ones soon after they appear, until the
// store is closed.
func (sa *safety) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	period := sa.s.opts.checkEvery
	all := time.NewTicker(period)
	defer all.Stop()
	some := time.NewTicker(min(period, safetyLook))
	defer some.Stop()
	for {
		due := false
		select {
		case <-all.C:
			due = true
		case <-some.C:
		case <-sa.wake:
		case <-sa.s.closed:
			return
		}
		// A cluster that cannot be asked for its masters is the breakers' concern.
		_, _ = sa.inspect(ctx, due)
	}
}

// inspect checks all servers, or those that have not been checked, at the same time,
// and publishes what it finds. A server that does not answer keeps its warnings.
func (sa *safety) inspect(ctx context.Context, all bool) ([]inspection, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*sa.s.opts.Timeout)
	defer cancel()
	servers, err := sa.s.conn.read.servers(ctx)
	if err != nil {
		return nil, failure(err)
	}
	picked := sa.pick(ctx, servers, all)
	out := make([]inspection, len(picked))
	var wg sync.WaitGroup
	for i, node := range picked {
		wg.Go(func() { out[i] = sa.inspectNode(ctx, node) })
	}
	wg.Wait()
	return out, nil
}

// pick returns the servers to check, and clears the warnings of those that have left.
func (sa *safety) pick(ctx context.Context, servers []*goredis.Client, all bool) (picked []*goredis.Client) {
	sa.mu.Lock()
	defer sa.mu.Unlock()
	here := map[string]bool{}
	for _, node := range servers {
		name := sa.s.conn.nodeName(node)
		here[name] = true
		if sa.nodes[name] == nil {
			sa.nodes[name] = &nodeSafety{}
		}
		if all || !sa.nodes[name].checked {
			picked = append(picked, node)
		}
	}
	for name := range sa.nodes {
		if !here[name] {
			delete(sa.nodes, name)
			sa.s.warnings.ClearNode(ctx, name)
		}
	}
	return picked
}

func (sa *safety) inspectNode(ctx context.Context, node *goredis.Client) inspection {
	in := inspection{node: sa.s.conn.nodeName(node)}
	st, err := readServerState(ctx, node, sa.s.opts.Timeout, sa.asksConfig(in.node))
	var reply goredis.Error
	switch {
	case errors.As(err, &reply):
		in.refused = err
	case err != nil:
		in.err = failure(err)
		return in
	}
	sa.mu.Lock()
	defer sa.mu.Unlock()
	known := sa.nodes[in.node]
	if known == nil {
		return in // it has left meanwhile
	}
	known.checked = true
	sa.logUnreported(ctx, in, st, known)
	// The settings of a replica count when it is promoted.
	if in.refused != nil || st.info["role"] == "slave" {
		return in
	}
	in.findings = append(st.findings(sa.s.conn.cluster), known.countEvictions(st)...)
	for _, f := range in.findings {
		if f.message == "" {
			sa.s.warnings.Clear(ctx, f.code, in.node)
		} else {
			sa.s.warnings.Raise(ctx, f.code, in.node, f.message)
		}
	}
	return in
}

// asksConfig returns whether a server is to be asked for its settings. One that has
// refused is asked seldom: it may count and log what it refuses.
func (sa *safety) asksConfig(node string) bool {
	sa.mu.Lock()
	defer sa.mu.Unlock()
	known := sa.nodes[node]
	if known == nil || known.noConfig == 0 {
		return true
	}
	known.noConfig--
	return false
}

// logUnreported logs once what a server does not report: no warning is raised about
// what is not known.
func (sa *safety) logUnreported(ctx context.Context, in inspection, st serverState, known *nodeSafety) {
	command, err := "INFO", in.refused
	if err == nil {
		command, err = "CONFIG GET", st.configErr
	}
	if err == nil {
		return
	}
	known.noConfig = quietChecks
	if !known.logged {
		known.logged = true
		sa.s.opts.Log.InfoContext(ctx, "settings of a Redis server cannot be checked",
			slog.String("node", in.node), slog.String("command", command), slog.Any("error", err))
	}
}

// countEvictions compares the server's counter of evicted keys with that of the last
// check. What was evicted before the first check is not known to be ours.
func (n *nodeSafety) countEvictions(st serverState) []finding {
	evicted, reported := st.number("evicted_keys")
	if !reported {
		return nil
	}
	if id := st.info["run_id"]; id != n.runID {
		n.runID, n.evicted = id, evicted // another process, whose counter is another
	}
	n.quiet++
	if evicted > n.evicted {
		n.lost, n.quiet = n.lost+evicted-n.evicted, 0
	}
	n.evicted = evicted
	if n.quiet >= quietChecks {
		n.lost = 0
	}
	message := ""
	if n.lost > 0 {
		message = fmt.Sprintf("Redis has evicted %d keys since it is watched: live sessions and index entries may be gone; set maxmemory-policy noeviction, then run stoker repair", n.lost)
	}
	return []finding{{warnEvictions, message}}
}

// checkServers returns why the servers must not be used: they are too old, or
// --require-safe-redis is set and they endanger data or could not be checked. In a
// cluster, servers that do not answer are left out: nothing is written to them.
func (s *Store) checkServers(ctx context.Context) error {
	sa := s.safety
	if since := s.opts.Clock().Sub(sa.at); sa.unsafe != nil && since >= 0 && since < unsafePause {
		return sa.unsafe
	}
	sa.unsafe = nil
	seen, err := sa.inspect(ctx, true)
	reasons, answered := []string(nil), false
	for _, in := range seen {
		if in.err != nil {
			err = in.err
			continue
		}
		answered = true
		if in.refused != nil {
			reasons = append(reasons, fmt.Sprintf("%s: settings cannot be checked: %v", in.node, in.refused))
		}
		for _, f := range in.findings {
			if f.code == warnVersion && f.message != "" {
				return &mismatchError{in.node + ": " + f.message}
			}
			if f.message != "" {
				reasons = append(reasons, in.node+": "+f.message)
			}
		}
	}
	switch {
	case !s.opts.RequireSafe:
		return nil // what does not answer now is checked later
	case !answered:
		return err
	case len(reasons) > 0:
		slices.Sort(reasons)
		sa.unsafe, sa.at = &unsafeError{reasons}, s.opts.Clock()
		return sa.unsafe
	}
	return nil
}
