package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func group() *Group { return NewGroup(slog.New(slog.DiscardHandler), time.Second) }

func TestClosersRunInReverseWhileWorkersStillRun(t *testing.T) {
	g := group()
	var order []string
	working := make(chan struct{})
	g.Go("worker", func(ctx context.Context) error {
		close(working)
		<-ctx.Done()
		order = append(order, "worker")
		return ctx.Err()
	})
	for _, name := range []string{"store", "server"} {
		g.OnClose(name, func(context.Context) error {
			order = append(order, name)
			return nil
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-working
		cancel()
	}()
	if err := g.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, " "); got != "server store worker" {
		t.Errorf("closed in the order %s", got)
	}
}

func TestAFailingWorkerStopsTheRest(t *testing.T) {
	boom := errors.New("boom")
	for name, fail := range map[string]func(context.Context) error{
		"error": func(context.Context) error { return boom },
		"panic": func(context.Context) error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			g := group()
			g.Go("healthy", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			g.Go("sick", fail)
			err := g.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), "run sick") || !strings.Contains(err.Error(), "boom") {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func TestGraceBoundsClosers(t *testing.T) {
	g := NewGroup(slog.New(slog.DiscardHandler), time.Millisecond)
	g.OnClose("stuck", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run returned %v, want the closer's deadline", err)
	}
}
