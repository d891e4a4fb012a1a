// Stoker runs everything in one process, and is the operator's command line.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/livinguniverse/stoker/pkg/config"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/standalone"
	"github.com/livinguniverse/stoker/services/standalone/bench"
	"github.com/livinguniverse/stoker/services/standalone/internal/operator"
)

var version = "dev"

func main() {
	root := &cobra.Command{Use: "stoker", Short: "A session store that keeps a session alive as long as somebody really uses it", Version: version, SilenceUsage: true, SilenceErrors: true}
	cfg := standalone.Default()
	run := &cobra.Command{Use: "run", Short: "Serve everything in one process, on the embedded store or on Redis", Args: cobra.NoArgs}
	config.Bind(run, &cfg, func(ctx context.Context) error {
		cfg.Telemetry.ServiceName, cfg.Telemetry.Version = "stoker", version
		cfg.Gateway.Telemetry.Version = version
		return telemetry.Run(ctx, cfg.Telemetry, os.Stderr, func(tel *telemetry.Telemetry) error {
			return standalone.Run(ctx, cfg, tel, os.Stdout)
		})
	})
	root.AddCommand(run, bench.Command(version), config.CheckCommand(&cfg), rpc.HealthCommand())
	root.AddCommand(operator.Commands()...)
	os.Exit(config.Main(root))
}
