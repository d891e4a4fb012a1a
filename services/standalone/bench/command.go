package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/livinguniverse/stoker/services/standalone/internal/docmark"
)

// Options say how to measure.
type Options struct {
	// Budget bounds the whole run; at least 5 s. What does not fit is left out,
	// and the report says so.
	Budget time.Duration
	// Rounds that each figure is the median of, 1 to 9.
	Rounds int
	// JSON is the file for all samples; none where empty.
	JSON string
	// Docs is a Markdown file that gets the tables between its marks; none where
	// empty.
	Docs string
	// Program is how to start this program's child processes: the path of an
	// executable, and arguments that come before a child's own.
	Program []string
	// Version of Stoker, for the report.
	Version string
}

func (o Options) validate() error {
	var errs []error
	if o.Budget < 5*time.Second {
		errs = append(errs, fmt.Errorf("--budget: got %v, want at least 5s", o.Budget))
	}
	if o.Rounds < 1 || o.Rounds > 9 {
		errs = append(errs, fmt.Errorf("--rounds: got %d, want 1 to 9", o.Rounds))
	}
	return errors.Join(errs...)
}

// Command returns `bench`, which measures, and its hidden `bench child`, which
// the measured processes are.
func Command(version string) *cobra.Command {
	o := Options{Version: version}
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure Stoker against gRPC and Redis alone, on this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Program = []string{self, "bench", childName}
			return Main(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().DurationVar(&o.Budget, "budget", 5*time.Minute, "how long the whole run may take, at least 5s")
	cmd.Flags().IntVar(&o.Rounds, "rounds", 3, "rounds that each figure is the median of, 1 to 9")
	cmd.Flags().StringVar(&o.JSON, "json", "", "`file` to write every sample to")
	cmd.Flags().StringVar(&o.Docs, "docs", "", "Markdown `file` to put the tables into, between its marks")
	cmd.AddCommand(&cobra.Command{
		Use: childName + " KIND", Hidden: true, DisableFlagParsing: true, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return Child(cmd.Context(), args, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	})
	return cmd
}

// Main measures, prints the tables to out and progress to progress, and writes
// the files. It fails when something could not be measured, not when a target
// is missed.
func Main(ctx context.Context, o Options, out, progress io.Writer) error {
	if err := o.validate(); err != nil {
		return err
	}
	r, err := Run(ctx, o, progress)
	if err != nil {
		return err
	}
	text := r.Markdown()
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	if o.JSON != "" {
		raw, err := r.JSON()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Clean(o.JSON), raw, 0o644); err != nil { //nolint:gosec // a report is for everybody
			return err
		}
	}
	if o.Docs == "" {
		return nil
	}
	return docmark.Write(o.Docs, "bench", text)
}
