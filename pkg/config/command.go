package config

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Settings is a service's configuration: flags bound to its fields, and a
// check of all of them together that joins every problem.
type Settings interface {
	Flags(fs *pflag.FlagSet)
	Validate() error
}

// Command returns a service's root command: its flags, --config, --version and
// `config check`. run gets a context that ends at SIGINT or SIGTERM.
func Command(use, short, version string, cfg Settings, run func(ctx context.Context) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Version: version, Args: cobra.NoArgs}
	Bind(cmd, cfg, run)
	cmd.AddCommand(CheckCommand(cfg))
	return cmd
}

// Bind gives a command the flags of a configuration and a run function that is
// called once the configuration is loaded and valid.
func Bind(cmd *cobra.Command, cfg Settings, run func(ctx context.Context) error) {
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cfg.Flags(cmd.Flags())
	AddFlag(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := load(cmd.Flags(), cfg); err != nil {
			return err
		}
		return run(cmd.Context())
	}
}

func load(fs *pflag.FlagSet, cfg Settings) error {
	if err := Load(fs); err != nil {
		return err
	}
	return cfg.Validate()
}

// CheckCommand returns `config check`, which takes the same flags and says
// every problem.
func CheckCommand(cfg Settings) *cobra.Command {
	check := &cobra.Command{
		Use: "check", Short: "Check flags, environment and file, and say every problem", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd.Flags(), cfg); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "configuration is valid")
			return err
		},
	}
	cfg.Flags(check.Flags())
	AddFlag(check.Flags())
	parent := &cobra.Command{Use: "config", Short: "Work on the configuration"}
	parent.AddCommand(check)
	return parent
}

// Main runs a command until it is done or a signal ends it, and returns the
// process's exit code: 0, or 1 with the error on standard error. A second
// signal kills at once.
func Main(cmd *cobra.Command) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	// Give the signals back after the first, so that the second is fatal.
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
		return 1
	}
	return 0
}
