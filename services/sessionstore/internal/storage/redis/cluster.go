package redis

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// topologyMaxAge bounds how long a cluster's client believes what it knows of
// the nodes: go-redis would go on dialing a dead one for a minute (#3979).
const topologyMaxAge = 2 * time.Second

// redirectsMost bounds how often a command is sent on: to where its slot has
// moved, and from there once more where it moves again.
const redirectsMost = 3

func newClient(opts goredis.UniversalOptions) goredis.UniversalClient {
	if opts.IsClusterMode {
		cluster := opts.Cluster()
		cluster.ClusterStateReloadInterval = topologyMaxAge
		return goredis.NewClusterClient(cluster)
	}
	return goredis.NewUniversalClient(&opts)
}

// reload makes a cluster's client look for its nodes again, in the background.
func (l *lane) reload(ctx context.Context) {
	if client, ok := l.client.(*goredis.ClusterClient); ok {
		client.ReloadState(ctx)
	}
}

// route runs one command through the automatic pipeline of the node that has its
// key. The one that go-redis has for a whole cluster puts commands for several
// nodes into a batch, and no caller is answered before the slowest of them: a
// dead node would be everybody's. It also sends a command again whose answer was
// lost, which is not for this layer to decide.
func (l *lane) route(ctx context.Context, cluster *goredis.ClusterClient, cmd goredis.Cmder) error {
	node, err := cluster.MasterForKey(ctx, routingKey(cmd))
	if err != nil {
		return routeError{err}
	}
	auto, err := node.AsyncAutoPipeline()
	if err == nil {
		err = auto.Submit(ctx, cmd).WaitContext(ctx)
	}
	if !redirected(err) {
		return err
	}
	// The slot moves or has moved, or the node has left: what is known of the
	// cluster is out of date, and the command was not run.
	cluster.ReloadState(ctx)
	cmd.SetErr(nil)
	return l.pipeline(ctx, cmd)
}

// hop is where a command goes next.
type hop struct {
	node   *goredis.Client
	asking bool
}

// spread sends commands to the nodes of a cluster that have their keys, one round
// trip to each at the same time, and those on that their node sends on. What
// go-redis does for pipelines of a cluster does not serve: where the first command
// of a batch is answered TRYAGAIN, or a reply is lost, it sends the whole batch
// again, and so applies twice what was applied. It returns whether any command was
// sent on: then they did not run in order.
func (l *lane) spread(ctx context.Context, cluster *goredis.ClusterClient, cmds []goredis.Cmder) (sentOn bool) {
	trips := map[hop][]goredis.Cmder{}
	for _, cmd := range cmds {
		l.plan(ctx, cluster, trips, cmd)
	}
	for range redirectsMost {
		var wg sync.WaitGroup
		for to, some := range trips {
			wg.Go(func() { send(ctx, to.node, some, to.asking) })
		}
		wg.Wait()
		onward := map[hop][]goredis.Cmder{}
		for from, some := range trips {
			for _, cmd := range some {
				l.planOnward(ctx, cluster, onward, from, cmd)
			}
		}
		if trips = onward; len(trips) == 0 {
			return sentOn
		}
		sentOn = true
		cluster.ReloadState(ctx)
	}
	for _, some := range trips {
		for _, cmd := range some {
			cmd.SetErr(errTooManyHops)
		}
	}
	return true
}

// errTooManyHops is the error of a command that every node has sent on.
var errTooManyHops = routeError{errors.New("the key moves from node to node")}

// routeError says that no node of a cluster is known to have a key now. The
// command was not run.
type routeError struct{ error }

func (e routeError) Unwrap() error { return e.error }

// plan adds a command to the round trip to the master that has its key.
func (l *lane) plan(ctx context.Context, cluster *goredis.ClusterClient, trips map[hop][]goredis.Cmder, cmd goredis.Cmder) {
	node, err := cluster.MasterForKey(ctx, routingKey(cmd))
	if err != nil {
		cmd.SetErr(routeError{err})
		return
	}
	trips[hop{node, false}] = append(trips[hop{node, false}], cmd)
}

// planOnward adds a command to the round trip to where its node has sent it, if it
// has.
func (l *lane) planOnward(ctx context.Context, cluster *goredis.ClusterClient, trips map[hop][]goredis.Cmder, from hop, cmd goredis.Cmder) {
	err := cmd.Err()
	if !redirected(err) {
		return
	}
	addr, moved := goredis.IsMovedError(err)
	if !moved {
		addr, _ = goredis.IsAskError(err)
	}
	if addr == "" { // the node has left, and its client was closed
		l.nodes.CompareAndDelete(from.node.Options().Addr, from.node)
		cmd.SetErr(nil)
		l.plan(ctx, cluster, trips, cmd)
		return
	}
	known, ok := l.nodes.Load(addr)
	if !ok {
		return // it stays where it was sent on; the topology is loaded anew
	}
	node, _ := known.(*goredis.Client)
	cmd.SetErr(nil)
	trips[hop{node, !moved}] = append(trips[hop{node, !moved}], cmd)
}

// routingKey is the key by which a command is sent: a script's first, the one behind
// "streams", any other command's first argument.
func routingKey(cmd goredis.Cmder) string {
	args, at := cmd.Args(), 1
	switch cmd.Name() {
	case "evalsha", "eval":
		at = argsAt
	case "xread":
		at = 1 + slices.IndexFunc(args, func(arg any) bool { return arg == "streams" })
	}
	if at >= len(args) {
		return ""
	}
	key, _ := args[at].(string)
	return key
}

// redirected says whether a node answered that it does not have the key, or is no
// longer one of ours.
func redirected(err error) bool {
	if err == nil {
		return false
	}
	_, moved := goredis.IsMovedError(err)
	_, ask := goredis.IsAskError(err)
	return moved || ask || errors.Is(err, goredis.ErrClosed)
}

// watchNodes keeps the breakers of a cluster in step with its nodes, and closes those
// of nodes that are well again though nobody calls them, until ctx ends.
func (c *conn) watchNodes(ctx context.Context) {
	tick := time.NewTicker(topologyMaxAge)
	defer tick.Stop()
	missed := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.dropNodes(ctx, missed)
		c.probeNodes(ctx)
	}
}

// departedAfter is for how many looks in a row a node must be missing before it counts
// as departed: a look may meet a node that knows less than others.
const departedAfter = 2

// dropNodes removes the breakers of nodes that are no longer in the cluster. A node that
// comes back begins with closed ones.
func (c *conn) dropNodes(ctx context.Context, missed map[string]int) {
	client, ok := c.read.client.(*goredis.ClusterClient)
	if !ok {
		return
	}
	slots, err := client.ClusterSlots(ctx).Result() //nolint:staticcheck // all that serve a cluster have it, and go-redis asks for it too
	if err != nil || len(slots) == 0 {
		return
	}
	present := map[string]bool{}
	for _, sl := range slots {
		for _, n := range sl.Nodes {
			present[n.Addr] = true
		}
	}
	for _, l := range c.lanes() {
		l.guards.Range(func(key, value any) bool {
			addr, _ := key.(string)
			g, _ := value.(*guard)
			if present[addr] {
				g.restore(c.breakers, l.class, addr)
			}
			return true
		})
	}
	c.servers.Range(func(key, _ any) bool {
		addr, _ := key.(string)
		if present[addr] {
			delete(missed, addr)
		} else if missed[addr]++; missed[addr] >= departedAfter {
			c.breakers.Drop(addr)
		}
		return true
	})
}

// restore gives a guard the breaker of its server that is listed: another one, once
// the one before was dropped.
func (g *guard) restore(breakers *resilience.Registry, class, addr string) {
	if b := breakers.Breaker(class, addr); g.breaker.Load() != b {
		g.breaker.Store(b)
	}
}

// probeNodes calls the nodes whose breaker is due for a probe.
func (c *conn) probeNodes(ctx context.Context) {
	for _, l := range c.lanes() {
		l.guards.Range(func(key, value any) bool {
			g, _ := value.(*guard)
			node, ok := l.nodes.Load(key)
			client, isClient := node.(*goredis.Client)
			if ok && isClient {
				g.probe(func() error { return client.Process(ctx, l.probeCommand(ctx)) })
			}
			return ctx.Err() == nil
		})
	}
}
