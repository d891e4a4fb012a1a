//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/standalone/internal/docmark"
)

// journalColumns are those of the fault matrix, and what the journal adds.
var journalColumns = append(slices.Clone(faultColumns), "Writes journaled", "p99 of a journaled write", "All replayed after")

// journaled is what a row has shown: how many calls there were and how many of
// them failed; of the writes that the journal took, how many and how long they
// lasted; and when all were replayed.
type journaled struct {
	measured
	calls, failed, count int
	p99, drained         time.Duration
}

// journalExpects says what a row is to show with the journal on; rows that are
// not here have nothing for it to do, or lose Redis's data.
const journalExpects = "hardly a call fails; writes go to the journal, reads of what was seen to memory"

// drainSlack is what replaying under load may take before the first calls reach
// Redis again.
const drainSlack = 10 * time.Second

// TestJournalMatrix puts a store with a journal through each fault in which
// Redis keeps its data, and through those of its own. Nothing that was acknowledged may be lost, by what it
// says itself and by what a second replica reads in Redis. With STOKER_DOCS set
// to a file it writes the table there, between marks of its own.
func TestJournalMatrix(t *testing.T) {
	var rows []string
	for _, f := range slices.Concat(faults, skewFaults, loginFaults, connectionFaults) {
		switch {
		case f.loses:
			continue
		case strings.HasPrefix(f.name, "flapping"):
			f.name, f.inject = "flapping every second for 20 s", flapping(10)
		}
		if f.opens {
			f.expect, f.fails, f.reads = journalExpects, false, true
		}
		t.Run(f.name, func(t *testing.T) {
			m := f.runJournal(t)
			rows = append(rows, m.row(f))
			t.Log(rows[len(rows)-1])
		})
	}
	for _, f := range journalFaults {
		t.Run(f.name, func(t *testing.T) {
			m := f.run(t)
			rows = append(rows, m.row(fault{name: f.name, expect: f.expect}))
			t.Log(rows[len(rows)-1])
		})
	}
	if path := os.Getenv("STOKER_DOCS"); path != "" && !t.Failed() {
		must(t, docmark.Write(path, "journal matrix", table(journalColumns, rows)))
	}
}

func (f fault) runJournal(t *testing.T) journaled {
	e := f.startEnv(t, "--data-dir", t.TempDir())
	l := newLedger(e.note)
	stop, watched := make(chan struct{}), make(chan struct{})
	load := e.driveLedger(t, l, stop)
	eventually(t, 20*time.Second, "the load is on", func() bool { return l.writes() > 300 })
	var watch sync.WaitGroup
	watch.Go(func() { e.watchBreakers(watched) })

	began, healed := f.strike(t, e)
	var m journaled
	eventually(t, 20*time.Second, "all is replayed, under load", func() bool { return e.status(t).GetJournalDepth() == 0 })
	m.drained = time.Since(healed)
	for _, write := range []bool{false, true} {
		eventually(t, 20*time.Second, "Redis answers again", func() bool { return e.answeredSince(healed, write) > 20 })
	}
	close(stop)
	load.Wait()
	close(watched)
	watch.Wait()
	eventually(t, 10*time.Second, "all is replayed", func() bool { return e.status(t).GetJournalDepth() == 0 })
	m.measured = e.measure(t, began, healed)
	e.countJournaled(&m)
	m.writes, m.lost = l.writes(), l.lost(t, e.store)
	second := openStore(t, nil, "--redis-url", e.url)
	m.lost = max(m.lost, l.lost(t, sessionv1.NewStorageServiceClient(second)))
	f.judgeJournal(t, e, l, m)
	return m
}

func (e *faultEnv) status(t *testing.T) *sessionv1.StoreStatus {
	t.Helper()
	st, err := e.admin.GetStoreStatus(t.Context(), &sessionv1.GetStoreStatusRequest{})
	must(t, err)
	return st
}

// driveLedger reads and writes until stop is closed.
func (e *faultEnv) driveLedger(t *testing.T, l *ledger, stop <-chan struct{}) *sync.WaitGroup {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 6 {
		w := &writer{ledger: l, store: e.store, user: fmt.Sprint("user-", i)}
		wg.Go(func() { pace(stop, e.unlessQuiet(w.step)) })
	}
	for range 4 {
		wg.Go(func() { pace(stop, e.unlessQuiet(func(ctx context.Context) { e.readLedger(ctx, l) })) })
	}
	return &wg
}

// unlessQuiet makes a call, but for the times in which clients are quiet.
func (e *faultEnv) unlessQuiet(call func(ctx context.Context)) func(ctx context.Context) {
	return func(ctx context.Context) {
		if !e.quiet.Load() {
			call(ctx)
		}
	}
}

// readLedger reads one session. That it is gone is as good an answer as any
// where it was deleted.
func (e *faultEnv) readLedger(ctx context.Context, l *ledger) {
	id := l.pick()
	if id == "" {
		return
	}
	before, begin := l.of(id), time.Now()
	got, stale, err := e.get(ctx, id)
	l.check(before, id, got, err, stale)
	c := faultCall{begin: begin, stale: stale}
	if l.of(id).deleting && status.Code(err) == codes.NotFound {
		err = nil
	}
	e.note(c, err)
}

// countJournaled counts the calls by what became of them.
func (e *faultEnv) countJournaled(m *journaled) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var took []time.Duration
	for _, c := range e.calls {
		m.calls++
		switch {
		case c.code != codes.OK:
			m.failed++
		case c.journaled:
			took = append(took, c.took)
		}
	}
	m.count = len(took)
	if slices.Sort(took); len(took) > 0 {
		m.p99 = took[len(took)*99/100]
	}
}

// judgeJournal holds a row to what the journal promises.
func (f fault) judgeJournal(t *testing.T, e *faultEnv, l *ledger, m journaled) {
	t.Helper()
	// Sessions share marks in the near-cache; one that was read just as another
	// was ended is not known then, which costs calls in an outage. They must be
	// few, and "unavailable", as the ledger has seen to.
	seen := m.measured
	if f.opens && m.failed <= m.calls/200 {
		seen.errors, seen.failedReads = "none", 0
	}
	// Redis is asked about a session again once its writes are replayed.
	f.slack += drainSlack
	f.judge(t, e, seen)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) > 0 {
		t.Errorf("%d wrong answers, among them:\n%s", len(l.wrong), strings.Join(l.wrong[:min(10, len(l.wrong))], "\n"))
	}
	if !f.either && f.opens != (m.count > 50) {
		t.Errorf("%d writes were journaled; that there are many must be %v", m.count, f.opens)
	}
	if st := e.status(t); st.GetDeadLetters() != 0 {
		list, err := e.admin.ListDeadLetters(t.Context(), &sessionv1.ListDeadLettersRequest{PageSize: 3})
		t.Errorf("%d dead letters: %v %v", st.GetDeadLetters(), list, err)
	}
}

func (m journaled) row(f fault) string {
	return fmt.Sprintf("%s %d | %s | %s |", m.measured.row(f), m.count, show(m.p99), show(m.drained))
}
