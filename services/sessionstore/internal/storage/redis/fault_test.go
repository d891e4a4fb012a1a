package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// replyError is an error that a server sent.
type replyError string

func (r replyError) Error() string { return string(r) }
func (replyError) RedisError()     {}

// TestFaults is the whole of what counts against a node, and what does not.
func TestFaults(t *testing.T) {
	dial := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	reset := &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	timeout := &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
	open := &resilience.OpenError{Breaker: "read@a:1"}
	for _, c := range []struct {
		name  string
		err   error
		fault bool
		maps  error // what failure makes of it; nil for an error of no kind
	}{
		{"connection refused", dial, true, storage.ErrUnavailable},
		{"connection reset", reset, true, storage.ErrUnavailable},
		{"read timeout", timeout, true, storage.ErrUnavailable},
		{"our deadline", context.DeadlineExceeded, true, storage.ErrUnavailable},
		{"end of file", io.EOF, true, storage.ErrUnavailable},
		{"end in the middle of a reply", io.ErrUnexpectedEOF, true, storage.ErrUnavailable},
		{"connection closed", net.ErrClosed, true, storage.ErrUnavailable},
		{"no such host", &net.DNSError{Err: "no such host"}, true, storage.ErrUnavailable},
		{"pool timeout", goredis.ErrPoolTimeout, true, storage.ErrUnavailable},
		{"pool exhausted", goredis.ErrPoolExhausted, true, storage.ErrUnavailable},
		{"wrapped", fmt.Errorf("pipeline: %w", reset), true, storage.ErrUnavailable},
		{"LOADING", replyError("LOADING Redis is loading the dataset in memory"), true, storage.ErrUnavailable},
		{"READONLY", replyError("READONLY You can't write against a read only replica."), true, storage.ErrUnavailable},
		{"CLUSTERDOWN", replyError("CLUSTERDOWN The cluster is down"), true, storage.ErrUnavailable},
		{"MASTERDOWN", replyError("MASTERDOWN Link with MASTER is down"), true, storage.ErrUnavailable},
		{"OOM", replyError("OOM command not allowed when used memory > 'maxmemory'."), true, storage.ErrUnavailable},
		{"OOM in a script", replyError("OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:1."), true, storage.ErrUnavailable},
		{"OOM in a script of Redis 6", replyError("ERR Error running script (call to f_1f): @user_script:7: @user_script: 7: -OOM command not allowed when used memory > 'maxmemory'."), true, storage.ErrUnavailable},
		{"READONLY in a script of Redis 6", replyError("ERR Error running script (call to f_1f): @user_script:7: @user_script: 7: -READONLY You can't write against a read only replica."), true, storage.ErrUnavailable},
		{"MISCONF", replyError("MISCONF Redis is configured to save RDB snapshots"), true, storage.ErrUnavailable},
		{"NOREPLICAS", replyError("NOREPLICAS Not enough good replicas to write."), true, storage.ErrUnavailable},
		{"too many connections", replyError("ERR max number of clients reached"), true, storage.ErrUnavailable},
		{"BUSY", replyError("BUSY Redis is busy running a script."), true, storage.ErrUnavailable},

		{"wrong password", replyError("WRONGPASS invalid username-password pair or user is disabled."), true, storage.ErrUnavailable},
		{"no login", replyError("NOAUTH Authentication required."), true, storage.ErrUnavailable},
		{"no right", replyError("NOPERM User stoker has no permissions to run the 'evalsha' command"), true, storage.ErrUnavailable},
		{"no right inside a script", replyError("ERR ACL failure in script: User stoker has no permissions to run the 'hset' command script: 1f, on @user_script:1."), true, storage.ErrUnavailable},
		{"protected mode", replyError("DENIED Redis is running in protected mode"), true, storage.ErrUnavailable},
		{"a large request without login", replyError("ERR Protocol error: unauthenticated multibulk length"), true, storage.ErrUnavailable},
		{"a command that the service does not have", replyError("ERR unknown command 'xread', with args beginning with: "), true, storage.ErrUnavailable},
		{"a reply that nobody knows", replyError("PAUSED until the upgrade is done"), true, storage.ErrUnavailable},
		{"a word that begins like another", replyError("BUSYGROUP Consumer Group name already exists"), true, storage.ErrUnavailable},
		{"certificate", &tls.CertificateVerificationError{Err: errors.New("unknown authority")}, true, storage.ErrUnavailable},

		{"nothing", nil, false, nil},
		{"nil", goredis.Nil, false, goredis.Nil},
		{"the caller has left", context.Canceled, false, context.Canceled},
		{"the caller has left, wrapped", fmt.Errorf("get: %w", context.Canceled), false, context.Canceled},
		{"the caller's deadline", fmt.Errorf("get: %w", departureError{context.DeadlineExceeded}), false, nil},
		{"closed by us", goredis.ErrClosed, false, storage.ErrClosed},
		{"turned away by a breaker", open, false, storage.ErrUnavailable},
		{"any other", errors.New("strange"), true, storage.ErrUnavailable},
		{"NOSCRIPT", replyError("NOSCRIPT No matching script."), false, storage.ErrUnavailable},
		{"WRONGTYPE", replyError("WRONGTYPE Operation against a key holding the wrong kind of value"), false, nil},

		// A moving slot is no fault of a node, and no verdict on the session.
		{"TRYAGAIN", replyError("TRYAGAIN Multiple keys request during rehashing of slot"), false, storage.ErrUnavailable},
		{"MOVED", replyError("MOVED 1 127.0.0.1:1"), false, storage.ErrUnavailable},
		{"ASK", replyError("ASK 1 127.0.0.1:1"), false, storage.ErrUnavailable},
		{"an undeclared key that has moved", replyError("ERR Script attempted to access a non local key in a cluster node script: 1f, on @user_script:3."), false, storage.ErrUnavailable},
		{"the same of Redis 6", replyError("ERR Error running script (call to f_1f): @user_script:7: @user_script: 7: Script attempted to access a non local key in a cluster node"), false, storage.ErrUnavailable},
		{"no node for a slot", routeError{errors.New("redis: cluster has no nodes")}, true, storage.ErrUnavailable},
		{"no node, since we have closed", routeError{goredis.ErrClosed}, false, storage.ErrClosed},

		{"a defect of a script", replyError("ERR user_script:3: attempt to index a nil value script: 1f, on @user_script:3."), false, nil},
		{"a defect of a script of Redis 6", replyError("ERR Error running script (call to f_1f): @user_script:7: user_script:7: attempt to index a nil value"), false, nil},
		{"an operator ended the script", replyError("ERR Error running script (call to f_1f): @user_script:1: Script killed by user with SCRIPT KILL..."), true, storage.ErrUnavailable},
		{"a bad stream id", replyError("ERR The ID specified in XADD is equal or smaller than the target stream top item script: 1f, on @user_script:1."), false, nil},
	} {
		if got := isFault(c.err); got != c.fault {
			t.Errorf("%s: fault %v, want %v", c.name, got, c.fault)
		}
		got := failure(c.err)
		if (c.err == nil) != (got == nil) {
			t.Errorf("%s: became %v", c.name, got)
		}
		if c.maps != nil && !errors.Is(got, c.maps) {
			t.Errorf("%s: became %v, want %v", c.name, got, c.maps)
		}
		if c.maps == nil && errors.Is(got, storage.ErrUnavailable) {
			t.Errorf("%s: became %v, which says that asking again may help", c.name, got)
		}
		if c.err != nil && !errors.Is(c.maps, storage.ErrClosed) && !errors.Is(got, c.err) {
			t.Errorf("%s: the cause is lost in %v", c.name, got)
		}
	}
}
