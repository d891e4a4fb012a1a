// Sessionstore serves the session store over gRPC.
package main

import (
	"context"
	"os"

	"github.com/livinguniverse/stoker/pkg/config"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/sessionstore"
)

var version = "dev"

func main() {
	var cfg sessionstore.Config
	cmd := config.Command("sessionstore", "Serve the session store over gRPC", version, &cfg, func(ctx context.Context) error {
		cfg.Telemetry.ServiceName, cfg.Telemetry.Version = "stoker-sessionstore", version
		return telemetry.Run(ctx, cfg.Telemetry, os.Stderr, func(tel *telemetry.Telemetry) error {
			return sessionstore.Run(ctx, cfg, tel)
		})
	})
	cmd.AddCommand(rpc.HealthCommand())
	os.Exit(config.Main(cmd))
}
