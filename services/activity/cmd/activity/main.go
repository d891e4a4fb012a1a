// Command activity runs the activity service.
package main

import (
	"context"
	"os"

	"github.com/livinguniverse/stoker/pkg/config"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/activity"
)

var version = "dev"

func main() {
	cfg := activity.Default()
	cmd := config.Command("activity", "Keep sessions alive while somebody uses them", version, &cfg, func(ctx context.Context) error {
		return activity.Serve(ctx, cfg, version, os.Stderr)
	})
	cmd.AddCommand(rpc.HealthCommand())
	os.Exit(config.Main(cmd))
}
