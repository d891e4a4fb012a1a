// Package operator is the command line for operators: each command is one call
// of a running Stoker, printed as JSON.
package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	activityv1 "github.com/livinguniverse/stoker/proto/gen/stoker/activity/v1"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const callTimeout = 10 * time.Second

// call is one call of a service; conn reaches the address in --addr.
type call func(ctx context.Context, conn grpc.ClientConnInterface, args []string) (proto.Message, error)

// Commands returns the operator's commands.
func Commands() []*cobra.Command {
	var list sessionv1.ListSessionsRequest
	var phase, reason, project string
	sessions := &cobra.Command{Use: "sessions", Short: "List, get, end and delete sessions"}
	ls := command("list", "List live sessions, or those of a phase", cobra.NoArgs, func(ctx context.Context, conn grpc.ClientConnInterface, _ []string) (proto.Message, error) {
		n, ok := sessionv1.Session_Phase_value[phase]
		if phase != "" && !ok {
			return nil, fmt.Errorf("--phase: got %q, want ACTIVE, IDLE, EXPIRING, ENDED or EXPIRED", phase)
		}
		list.Phase = sessionv1.Session_Phase(n)
		return sessionv1.NewStorageServiceClient(conn).ListSessions(ctx, &list)
	})
	ls.Flags().StringVar(&list.User, "user", "", "only this user's")
	ls.Flags().StringVar(&list.Project, "project", "", "only this project's")
	ls.Flags().StringVar(&phase, "phase", "", "only those in this phase")
	ls.Flags().Int32Var(&list.PageSize, "page-size", 50, "sessions at most, 1 to 1000")
	ls.Flags().StringVar(&list.PageToken, "page-token", "", "nextPageToken of the page before")
	end := command("end ID", "End a session", cobra.ExactArgs(1), func(ctx context.Context, conn grpc.ClientConnInterface, args []string) (proto.Message, error) {
		return sessionv1.NewStorageServiceClient(conn).EndSession(ctx, &sessionv1.EndSessionRequest{Id: args[0], Reason: reason})
	})
	end.Flags().StringVar(&reason, "reason", "ended by an operator", "why")
	sessions.AddCommand(ls, end,
		command("get ID", "Show a session", cobra.ExactArgs(1), func(ctx context.Context, conn grpc.ClientConnInterface, args []string) (proto.Message, error) {
			return sessionv1.NewStorageServiceClient(conn).GetSession(ctx, &sessionv1.GetSessionRequest{Id: args[0]})
		}),
		command("delete ID", "Remove a session and all that belongs to it", cobra.ExactArgs(1), func(ctx context.Context, conn grpc.ClientConnInterface, args []string) (proto.Message, error) {
			return sessionv1.NewStorageServiceClient(conn).DeleteSession(ctx, &sessionv1.DeleteSessionRequest{Id: args[0]})
		}))
	users := command("users", "List users with live sessions", cobra.NoArgs, func(ctx context.Context, conn grpc.ClientConnInterface, _ []string) (proto.Message, error) {
		return sessionv1.NewStorageServiceClient(conn).ListActiveUsers(ctx, &sessionv1.ListActiveUsersRequest{Project: project, PageSize: 1000})
	})
	users.Flags().StringVar(&project, "project", "", "only this project's")
	return []*cobra.Command{
		sessions, users, watch(), repair(),
		command("ttl ID", "Show a session's deadline and how far it can still move", cobra.ExactArgs(1), func(ctx context.Context, conn grpc.ClientConnInterface, args []string) (proto.Message, error) {
			return sessionv1.NewStorageServiceClient(conn).GetTTL(ctx, &sessionv1.GetTTLRequest{Id: args[0]})
		}),
		command("explain ID", "Tell why a session was or was not extended", cobra.ExactArgs(1), func(ctx context.Context, conn grpc.ClientConnInterface, args []string) (proto.Message, error) {
			return activityv1.NewActivityServiceClient(conn).GetActivity(ctx, &activityv1.GetActivityRequest{Id: args[0]})
		}),
		command("breakers", "List circuit breakers", cobra.NoArgs, func(ctx context.Context, conn grpc.ClientConnInterface, _ []string) (proto.Message, error) {
			return sessionv1.NewAdminServiceClient(conn).ListBreakers(ctx, &sessionv1.ListBreakersRequest{})
		}),
	}
}

// command makes a command of a call.
func command(use, short string, args cobra.PositionalArgs, do call) *cobra.Command {
	return dialled(&cobra.Command{Use: use, Short: short, Args: args}, func(cmd *cobra.Command, conn *grpc.ClientConn, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		m, err := do(ctx, conn, args)
		if err != nil {
			return plain(err)
		}
		return show(cmd.OutOrStdout(), m)
	})
}

func dialled(cmd *cobra.Command, run func(cmd *cobra.Command, conn *grpc.ClientConn, args []string) error) *cobra.Command {
	var addr string
	cmd.Flags().StringVar(&addr, "addr", "127.0.0.1:9090", "gRPC `address` of the service: the session store, or the activity service for explain")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		conn, err := rpc.Dial(addr, telemetry.Nop())
		if err != nil {
			return err
		}
		return errors.Join(run(cmd, conn, args), conn.Close())
	}
	return cmd
}

func show(out io.Writer, m proto.Message) error {
	text, err := protojson.MarshalOptions{Multiline: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", text)
	return err
}

// plain spells a status as its code and message.
func plain(err error) error {
	if s, ok := status.FromError(err); ok {
		return fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
	return err
}

// watch prints a session's events as they come.
func watch() *cobra.Command {
	return dialled(&cobra.Command{Use: "watch ID", Short: "Print a session's events as they come, until it is over", Args: cobra.ExactArgs(1)},
		func(cmd *cobra.Command, conn *grpc.ClientConn, args []string) error {
			stream, err := sessionv1.NewStorageServiceClient(conn).WatchEvents(cmd.Context(), &sessionv1.WatchEventsRequest{Id: args[0]})
			if err != nil {
				return plain(err)
			}
			for {
				m, err := stream.Recv()
				switch {
				case errors.Is(err, io.EOF), status.Code(err) == codes.Canceled:
					return nil // the session is over, or the operator has seen enough
				case err != nil:
					return plain(err)
				}
				if m.GetEvent() == nil {
					continue
				}
				text, err := protojson.Marshal(m.GetEvent())
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text); err != nil {
					return err
				}
			}
		})
}

// repair repairs the indexes, with its progress on standard error and the outcome
// on standard output.
func repair() *cobra.Command {
	return dialled(&cobra.Command{
		Use: "repair", Short: "Compare every session with its index entries and correct differences", Args: cobra.NoArgs,
		Long: "Compare the record of every session with its index entries, restore missing entries, correct wrong ones, and remove entries\n" +
			"without a session. Sessions may be used meanwhile. Run it once after an upgrade, when every replica has the new version:\n" +
			"it also raises the format of the data in Redis to 2, after which earlier versions refuse to start. On the embedded store\n" +
			"there is nothing to repair.",
	}, func(cmd *cobra.Command, conn *grpc.ClientConn, _ []string) error {
		stream, err := sessionv1.NewAdminServiceClient(conn).RepairIndexes(cmd.Context(), &sessionv1.RepairIndexesRequest{})
		if err != nil {
			return plain(err)
		}
		for {
			m, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return errors.New("the repair ended before it was done")
			case err != nil:
				return plain(err)
			}
			if _, err := fmt.Fprintln(cmd.ErrOrStderr(), repairProgress(m)); err != nil {
				return err
			}
			if m.GetDone() {
				return show(cmd.OutOrStdout(), m)
			}
		}
	})
}

func repairProgress(m *sessionv1.RepairIndexesResponse) string {
	done := ""
	if total := m.GetTotalKeys(); total > 0 {
		done = fmt.Sprintf("%d%%, ", min(100, 100*m.GetKeys()/total))
	}
	out := fmt.Sprintf("%s%d sessions compared, %d restored, %d entries dropped", done, m.GetSessions(), m.GetRestored(), m.GetDropped())
	if n := m.GetSkipped(); n > 0 {
		out += fmt.Sprintf(", %d not compared yet because their slots are moving", n)
	}
	return out
}
