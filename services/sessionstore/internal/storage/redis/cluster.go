package redis

import (
	"context"
	"errors"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// topologyMaxAge bounds how long a cluster's client believes what it knows of
// the nodes: go-redis would go on dialing a dead one for a minute (#3979).
const topologyMaxAge = 2 * time.Second

// redirectsMost follows a slot that has moved, and is on the move again. It is
// few, because go-redis sends again what was lost on the way by the same count.
const redirectsMost = 2

func newClient(opts goredis.UniversalOptions) goredis.UniversalClient {
	if opts.IsClusterMode {
		cluster := opts.Cluster()
		cluster.ClusterStateReloadInterval = topologyMaxAge
		cluster.MaxRedirects = redirectsMost
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
		return err
	}
	auto, err := node.AsyncAutoPipeline()
	if err == nil {
		err = auto.Submit(ctx, cmd).WaitContext(ctx)
	}
	if !elsewhere(err) {
		return err
	}
	// The slot has moved, or the node has left: what is known of the cluster is
	// out of date, and the command was not run.
	cluster.ReloadState(ctx)
	cmd.SetErr(nil)
	return l.pipeline(ctx, cmd)
}

// routingKey is the key by which a command is sent: a script's first, any other
// command's first argument.
func routingKey(cmd goredis.Cmder) string {
	args, at := cmd.Args(), 1
	if name := cmd.Name(); name == "evalsha" || name == "eval" {
		at = 3
	}
	if at >= len(args) {
		return ""
	}
	key, _ := args[at].(string)
	return key
}

// elsewhere says whether a node answered that it does not have the key, or is
// no longer one of ours.
func elsewhere(err error) bool {
	_, moved := goredis.IsMovedError(err)
	_, ask := goredis.IsAskError(err)
	return moved || ask || errors.Is(err, goredis.ErrClosed)
}
