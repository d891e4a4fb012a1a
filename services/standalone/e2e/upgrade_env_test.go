//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// oldCommit is the last version that writes data of format 1.
const oldCommit = "c6982ea"

// version is one of the two versions whose processes run side by side.
type version string

const (
	oldVersion version = "old"
	newVersion version = "new"
)

// binary returns the path of a version's binary. It builds the old ones at the
// first use, beside the new ones, where later runs find them.
func (v version) binary(t *testing.T, name string) string {
	t.Helper()
	root, err := filepath.Abs("../../..")
	must(t, err)
	path := filepath.Join(root, "bin", name)
	if v == oldVersion {
		buildOld(t, root)
		path = filepath.Join(root, "bin", oldCommit, name)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return path
}

// buildOld builds the binaries of oldCommit into bin/<oldCommit>, once and for all:
// a commit never changes.
func buildOld(t *testing.T, root string) {
	t.Helper()
	dir := filepath.Join(root, "bin", oldCommit)
	if _, err := os.Stat(dir); err == nil {
		return
	}
	if err := exec.CommandContext(t.Context(), "git", "-C", root, "cat-file", "-e", oldCommit+"^{commit}").Run(); err != nil {
		t.Skipf("this clone does not have the commit %s, of which the old version is built: %v", oldCommit, err)
	}
	begin, src := time.Now(), t.TempDir()
	run(t, "sh", "-c", fmt.Sprintf("git -C %q archive %s | tar -x -C %q", root, oldCommit, src))
	must(t, os.MkdirAll(filepath.Dir(dir), 0o750))
	out, err := os.MkdirTemp(filepath.Dir(dir), oldCommit+"-*") //nolint:usetesting // it is renamed, so it must be on the same file system
	must(t, err)
	defer os.RemoveAll(out)
	for name, pkg := range map[string]string{"sessionstore": "./services/sessionstore/cmd/sessionstore", "activity": "./services/activity/cmd/activity"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(out, name), pkg)
		cmd.Dir, cmd.Env = src, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=")
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s of %s: %v\n%s", name, oldCommit, err, msg)
		}
	}
	must(t, os.Rename(out, dir))
	t.Logf("built the old version in %v", time.Since(begin).Round(time.Second))
}

// upgradeReplica is a replica of the store with fixed addresses, whose process is
// replaced by that of another version.
type upgradeReplica struct {
	name, grpc, admin string
	args              []string
	proc              *process

	up      atomic.Bool
	version atomic.Value
	conn    atomic.Pointer[grpc.ClientConn]
}

func newUpgradeReplica(t *testing.T, name string, args ...string) *upgradeReplica {
	t.Helper()
	return &upgradeReplica{name: name, grpc: freeAddr(t), admin: freeAddr(t), args: args}
}

// start starts the process of a version, with more arguments, and waits until it
// is ready.
func (r *upgradeReplica) start(t *testing.T, v version, more ...string) {
	t.Helper()
	args := append([]string{"--grpc-addr", r.grpc, "--admin-addr", r.admin}, r.args...)
	r.proc = startBinary(t, v.binary(t, "sessionstore"), append(args, more...)...)
	ready(t, "http://"+r.admin+"/readyz", r.proc)
	// A connection to the process before would wait before it connects again.
	conn, err := rpc.Dial(r.grpc, telemetry.Nop())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	r.version.Store(v)
	r.conn.Store(conn)
	r.up.Store(true)
}

// stop ends the process; its clients notice shortly after the signal.
func (r *upgradeReplica) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	_ = r.proc.cmd.Process.Signal(sig)
	time.Sleep(30 * time.Millisecond)
	r.up.Store(false)
	r.proc.stop(t, sig)
}

func (r *upgradeReplica) runs() version { return r.version.Load().(version) }

func (r *upgradeReplica) store() sessionv1.StorageServiceClient {
	return sessionv1.NewStorageServiceClient(r.conn.Load())
}

func (r *upgradeReplica) status(t *testing.T) *sessionv1.StoreStatus {
	t.Helper()
	st, err := sessionv1.NewAdminServiceClient(r.conn.Load()).GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
	must(t, err)
	return st
}

const upgradeShards = 8

// upgrade is a deployment of two replicas on one Redis, of which A has a journal.
type upgrade struct {
	redis *redistest.Server
	raw   *goredis.Client
	a, b  *upgradeReplica
	load  *slotLoad

	// gate is closed to those clients that must not call while only A takes writes.
	gate sync.RWMutex
	// outage is set while Redis is unavailable: clients of A stay with it.
	outage atomic.Bool
	// disturbances are under way, and their changes so far.
	disturbances, changes atomic.Int64
	// outages are when Redis did not answer or its journaled writes were not
	// replayed: session:expiring may be left out.
	outages [][2]time.Time

	home, shared []*slotClient
	cross        *crossClient
	kept         *writer
	// seeds are the long-lived sessions that no client changes.
	seeds []string
}

func newUpgrade(t *testing.T) *upgrade {
	t.Helper()
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	u := &upgrade{redis: redis, raw: goredis.NewClient(&goredis.Options{Addr: redis.Addr})}
	t.Cleanup(func() { _ = u.raw.Close() })
	args := []string{
		"--shards", fmt.Sprint(upgradeShards), "--redis-url", redis.URL(), "--sweep-interval", "100ms",
		// The machine may be busy: a slow Redis is no outage.
		"--redis-timeout", "1s", "--breaker-delay", "300ms",
	}
	u.b = newUpgradeReplica(t, "B", args...)
	u.a = newUpgradeReplica(t, "A", append(args, "--data-dir", t.TempDir(), "--write-fallback", "journal")...)
	u.a.start(t, oldVersion)
	u.b.start(t, oldVersion)
	u.load = newSlotLoad(u.client(alternate()), u.client(first(1)))
	// The group "activity" is that of the activity service.
	u.load.group = "audit"
	u.load.startFeed(t)
	eventually(t, 10*time.Second, "the reader of the feed has joined on every shard", func() bool {
		for shard := range upgradeShards {
			if !u.raw.HExists(t.Context(), fmt.Sprintf("stoker:{s%d}:groups", shard), u.load.group).Val() {
				return false
			}
		}
		return true
	})
	return u
}

// disturb runs do, during which calls may be UNAVAILABLE.
func (u *upgrade) disturb(do func()) {
	u.disturbances.Add(1)
	u.changes.Add(1)
	do()
	u.disturbances.Add(-1)
	u.changes.Add(1)
}

// replace replaces a process by one of another version or the same.
func (u *upgrade) replace(t *testing.T, r *upgradeReplica, v version, sig syscall.Signal, more ...string) {
	t.Helper()
	u.disturb(func() {
		r.stop(t, sig)
		r.start(t, v, more...)
	})
}

// replaceInOutage replaces A while Redis is unavailable and writes are pending in
// its journal, which the other version takes over, adds to and replays.
func (u *upgrade) replaceInOutage(t *testing.T, v version, more ...string) {
	t.Helper()
	u.gate.Lock()
	defer u.gate.Unlock()
	journaled := func() int {
		u.load.counting.Lock()
		defer u.load.counting.Unlock()
		return u.load.journaled
	}
	u.disturb(func() {
		begin, was, from := time.Now(), u.a.runs(), journaled()
		u.outage.Store(true)
		must(t, u.redis.Kill())
		eventually(t, 20*time.Second, "writes are journaled", func() bool { return journaled() >= from+120 })
		u.a.stop(t, syscall.SIGTERM)
		before := journaled() - from
		u.a.start(t, v, more...)
		depth := u.a.status(t).GetJournalDepth()
		eventually(t, 20*time.Second, "writes are journaled by the other version", func() bool { return journaled() >= from+before+40 })
		must(t, u.redis.Restart(t.Context()))
		eventually(t, 20*time.Second, "the journal is replayed", func() bool { return u.a.status(t).GetJournalDepth() == 0 })
		u.outage.Store(false)
		for _, r := range []*upgradeReplica{u.a, u.b} {
			u.awaitAnswers(t, r)
		}
		u.outages = append(u.outages, [2]time.Time{begin, time.Now()})
		if depth < 100 {
			t.Errorf("%d writes of the %s version were pending when the %s one started, want 100 or more", depth, was, v)
		}
		t.Logf("outage of %v: %d writes journaled by the %s version, %d of them pending when the %s one started, which journaled %d more",
			time.Since(begin).Round(time.Millisecond), before, was, depth, v, journaled()-from-before)
	})
}

// awaitAnswers waits until a replica reads and writes in Redis, with no breaker on
// probation.
func (u *upgrade) awaitAnswers(t *testing.T, r *upgradeReplica) {
	t.Helper()
	good := 0
	eventually(t, 20*time.Second, r.name+" uses Redis", func() bool {
		var h metadata.MD
		_, err := r.store().GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: u.seeds[0]}, grpc.Header(&h))
		_, err2 := r.store().AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: u.seeds[0], Events: []*sessionv1.Event{{Type: "input:probe"}}})
		if good++; err != nil || err2 != nil || len(h.Get("stoker-served-by")) > 0 {
			good = 0
		}
		return good >= 5
	})
}

// upgradeConn connects clients with the deployment: each call goes to a replica
// that is up. UNAVAILABLE is a fault unless something is disturbed meanwhile.
type upgradeConn struct {
	u    *upgrade
	pick func(u *upgrade) *upgradeReplica
}

func (u *upgrade) client(pick func(u *upgrade) *upgradeReplica) sessionv1.StorageServiceClient {
	return sessionv1.NewStorageServiceClient(&upgradeConn{u: u, pick: pick})
}

// first picks a replica where it is up, and else the other one; 0 is A, with which
// its clients stay while only its journal takes writes.
func first(i int) func(u *upgrade) *upgradeReplica {
	return func(u *upgrade) *upgradeReplica {
		rs := []*upgradeReplica{u.a, u.b}
		if rs[i].up.Load() || i == 0 && u.outage.Load() {
			return rs[i]
		}
		return rs[1-i]
	}
}

// alternate picks the replicas in turn.
func alternate() func(u *upgrade) *upgradeReplica {
	var n atomic.Uint64
	return func(u *upgrade) *upgradeReplica { return first(int(n.Add(1) % 2))(u) }
}

// Invoke implements grpc.ClientConnInterface.
func (c *upgradeConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	r, since := c.pick(c.u), c.u.changes.Load()
	return c.u.judge(method, r, since, r.conn.Load().Invoke(ctx, method, args, reply, opts...))
}

// NewStream implements grpc.ClientConnInterface.
func (c *upgradeConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	r, since := c.pick(c.u), c.u.changes.Load()
	s, err := r.conn.Load().NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, c.u.judge(method, r, since, err)
	}
	return &upgradeStream{ClientStream: s, u: c.u, r: r, method: method}, nil
}

type upgradeStream struct {
	grpc.ClientStream
	u      *upgrade
	r      *upgradeReplica
	method string
}

func (s *upgradeStream) RecvMsg(m any) error {
	since := s.u.changes.Load()
	return s.u.judge(s.method, s.r, since, s.ClientStream.RecvMsg(m))
}

// judge records UNAVAILABLE where nothing has been disturbed since a call began,
// and gives the errors of the transport the delay that those of the store have.
func (u *upgrade) judge(method string, r *upgradeReplica, since int64, err error) error {
	s := status.Convert(err)
	disturbed := u.disturbances.Load() > 0 || u.changes.Load() != since
	// A Feed that is opened while its store stops may end with CANCELED: the server
	// returns the error of a context that it has canceled itself. The consumers open
	// it again.
	if disturbed && s.Code() == codes.Canceled && strings.HasSuffix(method, "/Feed") && s.Message() == "the caller went away" {
		s = status.New(codes.Unavailable, s.Message())
		err = s.Err()
	}
	if err == nil || s.Code() != codes.Unavailable {
		return err
	}
	if !disturbed {
		u.load.fault("%s at %s is UNAVAILABLE though no process is replaced: %v", method, r.name, err)
	}
	if hasRetryDelay(s) {
		return err
	}
	with, err2 := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(50 * time.Millisecond)})
	if err2 != nil {
		return err
	}
	return with.Err()
}
