//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/pkg/telemetry"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// replica is a store with a journal, in a process that can be killed and
// started again with the same directory, on a Redis of its own.
type replica struct {
	redis   *redistest.Server
	dir     string
	proc    *process
	metrics string
	store   sessionv1.StorageServiceClient
	admin   sessionv1.AdminServiceClient

	// env keeps what calls were answered, ledger what was acknowledged by them.
	env     *faultEnv
	ledger  *ledger
	writers []*writer
}

func newReplica(t *testing.T, dir string) *replica {
	t.Helper()
	r := &replica{redis: redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always"), dir: dir, env: &faultEnv{}}
	r.ledger = newLedger(r.env.note)
	for i := range 6 {
		r.writers = append(r.writers, &writer{ledger: r.ledger, user: fmt.Sprint("user-", i)})
	}
	return r
}

// launch starts the process on a directory, and returns where it tells how it
// is.
func (r *replica) launch(t *testing.T, dir string) (p *process, grpc, admin string) {
	t.Helper()
	grpc, admin = freeAddr(t), freeAddr(t)
	return start(t, "sessionstore", "--grpc-addr", grpc, "--admin-addr", admin, "--redis-url", r.redis.URL(), "--redis-timeout", faultTimeout.String(),
		"--breaker-delay", faultDelay.String(), "--data-dir", dir), grpc, admin
}

// start starts it, and waits until it is ready: it must be without Redis, too.
func (r *replica) start(t *testing.T) {
	t.Helper()
	var grpc, admin string
	r.proc, grpc, admin = r.launch(t, r.dir)
	ready(t, "http://"+admin+"/readyz", r.proc)
	conn, err := rpc.Dial(grpc, telemetry.Nop())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	r.store, r.admin, r.metrics = sessionv1.NewStorageServiceClient(conn), sessionv1.NewAdminServiceClient(conn), "http://"+admin+"/metrics"
	for _, w := range r.writers {
		w.store = r.store
	}
}

// broken says whether the journal is said to be, by the metric and by the
// status alike.
func (r *replica) broken(t *testing.T) bool {
	t.Helper()
	before := metric(t, r.metrics, "stoker_journal_broken") == 1
	st, err := r.admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
	must(t, err)
	after := metric(t, r.metrics, "stoker_journal_broken") == 1
	if before == after && st.GetJournalBroken() != after {
		t.Errorf("the status says that it is broken: %v, the metric %v", st.GetJournalBroken(), after)
	}
	return after
}

// refused starts it on a directory that it must not take, and returns what it
// said.
func (r *replica) refused(t *testing.T, dir string) string {
	t.Helper()
	p, _, _ := r.launch(t, dir)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		t.Fatal("it runs")
	}
	if p.cmd.ProcessState.Success() {
		t.Error("it ended as if all were well")
	}
	return p.out.String()
}

// load drives the writers while do runs.
func (r *replica) load(do func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, w := range r.writers {
		wg.Go(func() { pace(stop, w.step) })
	}
	do()
	close(stop)
	wg.Wait()
}

// untilJournaled waits until so many more writes were taken by the journal.
func (r *replica) untilJournaled(t *testing.T, more int) {
	t.Helper()
	var before, now journaled
	r.env.countJournaled(&before)
	eventually(t, 20*time.Second, "writes are journaled", func() bool {
		now = journaled{}
		r.env.countJournaled(&now)
		return now.count >= before.count+more
	})
}

func (r *replica) kill(t *testing.T) {
	t.Helper()
	r.proc.stop(t, syscall.SIGKILL)
}

// remembered reads every session while Redis is away, after a start: what is
// answered must be as it was told, and something must be.
func (r *replica) remembered(t *testing.T) {
	t.Helper()
	e := &faultEnv{store: r.store}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n := 0
	for id := range r.ledger.told {
		before := r.ledger.of(id)
		got, _, err := e.get(ctx, id)
		// The journal's answers are no older than what was told.
		r.ledger.check(before, id, got, err, false)
		if err == nil {
			n++
		}
	}
	if n == 0 || len(e.badMarks) > 0 {
		t.Errorf("%d sessions were answered after the start, marked wrongly: %v", n, e.badMarks)
	}
}

func (r *replica) depth(t *testing.T) int64 {
	t.Helper()
	return int64(metric(t, r.metrics, "stoker_journal_writes"))
}

// finish waits until all is replayed, and reads it back: from the replica, and
// from one without a journal.
func (r *replica) finish(t *testing.T) journaled {
	t.Helper()
	m := journaled{}
	began := time.Now()
	eventually(t, 30*time.Second, "all is replayed", func() bool { return r.depth(t) == 0 })
	m.drained = time.Since(began)
	r.env.countJournaled(&m)
	m.errors, m.writes, m.lost = byCode(r.env.calls), r.ledger.writes(), r.ledger.lost(t, r.store)
	second := openStore(t, nil, "--redis-url", r.redis.URL())
	m.lost = max(m.lost, r.ledger.lost(t, sessionv1.NewStorageServiceClient(second)))
	if m.lost > 0 || m.count == 0 {
		t.Errorf("%d of %d acknowledged writes lost, %d were journaled", m.lost, m.writes, m.count)
	}
	if n := metric(t, r.metrics, "stoker_journal_dead_letters"); n > 0 {
		list, err := r.admin.ListDeadLetters(t.Context(), &sessionv1.ListDeadLettersRequest{PageSize: 3})
		t.Errorf("%v dead letters: %v %v", n, list, err)
	}
	if wrong := r.ledger.wrong; len(wrong) > 0 {
		t.Errorf("%d wrong answers: %v", len(wrong), wrong[:min(10, len(wrong))])
	}
	return m
}

// segments are the files of a journal's log, the newest last.
func segments(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "seg-*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments: %v %v", names, err)
	}
	slices.Sort(names)
	return names
}
