package redis

import (
	"context"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
)

// TestOneFaultIsThatOfTheBatch: a batch whose first commands were answered is a
// fault all the same when a later one met one, and none when it was refused.
func TestOneFaultIsThatOfTheBatch(t *testing.T) {
	breaker := resilience.NewRegistry(resilience.BreakerConfig{}, nil).Breaker(ClassWrite, "node")
	g := newGuard(breaker, time.Second, false)
	g.server, g.opened = func() *server { return &server{} }, func(context.Context) {}
	for _, c := range []struct {
		name  string
		err   error
		fault bool
	}{
		{"fault", replyError("OOM command not allowed when used memory > 'maxmemory'."), true},
		{"refusal", replyError("WRONGTYPE Operation against a key holding the wrong kind of value"), false},
		{"nothing there", goredis.Nil, false},
	} {
		cmds := []goredis.Cmder{goredis.NewCmd(t.Context(), "get", "a"), goredis.NewCmd(t.Context(), "get", "b")}
		before := breaker.Status().Failures
		_ = g.ProcessPipelineHook(func(_ context.Context, cmds []goredis.Cmder) error {
			cmds[0].SetErr(nil)
			cmds[1].SetErr(c.err)
			return nil
		})(t.Context(), cmds)
		if got := breaker.Status().Failures > before; got != c.fault {
			t.Errorf("%s: taken for a fault: %v", c.name, got)
		}
		if cmds[0].Err() != nil || cmds[1].Err() != c.err { //nolint:errorlint // it must be passed on as it is
			t.Errorf("%s: the callers got %v and %v", c.name, cmds[0].Err(), cmds[1].Err())
		}
	}
}

// TestRefusedLoginsRetireNothing: the connections that are logged in are kept, also when
// the breaker opens.
func TestRefusedLoginsRetireNothing(t *testing.T) {
	for reply, retired := range map[string]bool{
		"WRONGPASS invalid username-password pair or user is disabled.":     false,
		"NOAUTH HELLO must be called with the client already authenticated": false,
		"NOAUTH Authentication required.":                                   true,
		"READONLY You can't write against a read only replica.":             true,
		"BUSY Redis is busy running a script.":                              true, // by the open breaker
	} {
		breaker := resilience.NewRegistry(resilience.BreakerConfig{}, nil).Breaker(ClassWrite, "node")
		g, s := newGuard(breaker, time.Second, false), &server{}
		g.server, g.opened = func() *server { return s }, func(context.Context) {}
		call := g.ProcessHook(func(_ context.Context, cmd goredis.Cmder) error {
			cmd.SetErr(replyError(reply))
			return cmd.Err()
		})
		for breaker.Status().State != resilience.Open {
			_ = call(t.Context(), goredis.NewCmd(t.Context(), "get", "a"))
		}
		if got := s.generation.Load() > 0; got != retired {
			t.Errorf("%s: connections were retired: %v", reply, got)
		}
	}
}
