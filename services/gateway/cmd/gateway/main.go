// Gateway serves Stoker to browsers: REST, polls and server-sent events.
package main

import (
	"context"
	"os"

	"github.com/livinguniverse/stoker/pkg/config"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/gateway"
)

var version = "dev"

func main() {
	var cfg gateway.Config
	cmd := config.Command("gateway", "Serve REST, polls and server-sent events", version, &cfg, func(ctx context.Context) error {
		cfg.Telemetry.ServiceName, cfg.Telemetry.Version = "stoker-gateway", version
		return telemetry.Run(ctx, cfg.Telemetry, os.Stderr, func(tel *telemetry.Telemetry) error {
			return gateway.Run(ctx, cfg, tel)
		})
	})
	cmd.AddCommand(rpc.HealthCommand())
	os.Exit(config.Main(cmd))
}
