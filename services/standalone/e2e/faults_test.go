//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/services/standalone/internal/docmark"
)

// fault is a row of the matrix.
type fault struct {
	name, expect string
	redis        []string
	inject, heal func(t *testing.T, e *faultEnv)
	lasts        time.Duration
	// opens: a breaker must open. fails: calls must fail, as proof that the
	// fault took place.
	opens, fails bool
	// reads: those of sessions that were seen must be answered from what the
	// store remembers, and none may fail.
	reads bool
	// loses: what was acknowledged is lost, and that must be told.
	loses bool
	// evicts: the server drops what was acknowledged without a word; warns must say so.
	evicts bool
	// either: calls may fail, breakers open and reads be answered from memory, or not.
	either bool
	// warns is the code of a warning that the status must have throughout; empty for
	// none.
	warns string
	// start starts another deployment than a server behind a proxy, and returns how
	// the store connects to it; nil for that.
	start func(t *testing.T, e *faultEnv) (args []string)
	// after looks at what the others do not; nil for nothing.
	after func(t *testing.T, e *faultEnv)
	// slack is what recovery may take beyond the breakers' delay and a second.
	slack time.Duration
}

// measured is what a row has shown.
type measured struct {
	errors                    string
	opened, failP99, recovery time.Duration
	writes, lost              int
	// stale reads were answered from memory; failed ones not at all.
	stale, failedReads int
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var faults = []fault{
	{
		name: "kill -9 and restart", expect: "writes turned away at once until it is back, reads answered from memory", opens: true, fails: true, reads: true, lasts: 2 * time.Second,
		inject: func(t *testing.T, e *faultEnv) { must(t, e.redis.Kill()) },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.redis.Restart(t.Context())) },
	},
	{
		name: "SIGSTOP for 5 s", expect: "5 timeouts, then writes turned away at once, reads answered from memory", opens: true, fails: true, reads: true, lasts: 5 * time.Second,
		inject: func(t *testing.T, e *faultEnv) { must(t, e.redis.Pause()) },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.redis.Resume()) },
	},
	{
		name: "connections refused", expect: "writes turned away at once, reads answered from memory", opens: true, fails: true, reads: true, lasts: 2 * time.Second,
		inject: func(_ *testing.T, e *faultEnv) { e.proxy.Stop() },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.proxy.Start()) },
	},
	{
		name: "reset in the middle of a reply", expect: "unknown outcome: an error, or the same again by its id", fails: true, reads: true, opens: true, lasts: 2 * time.Second,
		inject: func(t *testing.T, e *faultEnv) {
			e.toxic(t, `{"type":"limit_data","stream":"downstream","attributes":{"bytes":20}}`)
		},
		heal: func(t *testing.T, e *faultEnv) { e.healProxy(t) },
	},
	{
		name: "2 s latency", expect: "5 timeouts, then writes turned away at once, reads answered from memory", opens: true, fails: true, reads: true, lasts: 3 * time.Second,
		inject: func(t *testing.T, e *faultEnv) { e.toxic(t, `{"type":"latency","attributes":{"latency":2000}}`) },
		heal:   func(t *testing.T, e *faultEnv) { e.healProxy(t) },
		slack:  3 * time.Second, // what is under way still takes its 2 s
	},
	{
		name: "slow drip, a byte each 20 ms", expect: "5 timeouts, then writes turned away at once, reads answered from memory", opens: true, fails: true, reads: true, lasts: 3 * time.Second,
		inject: func(t *testing.T, e *faultEnv) {
			e.toxic(t, `{"type":"slicer","stream":"downstream","attributes":{"average_size":1,"size_variation":0,"delay":20000}}`)
		},
		heal:  func(t *testing.T, e *faultEnv) { e.healProxy(t) },
		slack: 3 * time.Second,
	},
	{
		name: "bandwidth 1 KiB/s", expect: "timeouts, then writes turned away at once, reads answered from memory", opens: true, fails: true, reads: true, lasts: 4 * time.Second,
		inject: func(t *testing.T, e *faultEnv) {
			e.toxic(t, `{"type":"bandwidth","stream":"downstream","attributes":{"rate":1}}`)
			e.toxic(t, `{"type":"bandwidth","stream":"upstream","attributes":{"rate":1}}`)
		},
		heal:  func(t *testing.T, e *faultEnv) { e.healProxy(t) },
		slack: 3 * time.Second,
	},
	{
		name: "out of memory, noeviction", expect: "writes turned away, reads go on", opens: true, fails: true, lasts: 2 * time.Second,
		redis:  []string{"--maxmemory-policy", "noeviction"},
		inject: func(t *testing.T, e *faultEnv) { must(t, e.raw.ConfigSet(t.Context(), "maxmemory", "1").Err()) },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.raw.ConfigSet(t.Context(), "maxmemory", "0").Err()) },
	},
	{
		name: "READONLY, as after a failover", expect: "writes turned away, reads answered from memory: what a replica has may be old", opens: true, fails: true, reads: true, lasts: 2 * time.Second,
		inject: func(t *testing.T, e *faultEnv) { must(t, e.raw.ReplicaOf(t.Context(), "127.0.0.1", "1").Err()) },
		heal:   func(t *testing.T, e *faultEnv) { must(t, e.raw.ReplicaOf(t.Context(), "NO", "ONE").Err()) },
	},
	{
		name: "LOADING after a restart", expect: "writes turned away at once until it is loaded, reads answered from memory", opens: true, fails: true, reads: true, lasts: time.Second,
		redis: []string{"--key-load-delay", "1000", "--enable-debug-command", "yes"},
		inject: func(t *testing.T, e *faultEnv) {
			must(t, e.redis.Kill())
			must(t, e.redis.Restart(t.Context())) // returns once it is loaded
		},
		heal: func(*testing.T, *faultEnv) {},
	},
	{
		name: "SCRIPT FLUSH every 5 ms", expect: "nobody notices", lasts: 2 * time.Second,
		inject: func(t *testing.T, e *faultEnv) {
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				must(t, e.raw.ScriptFlush(t.Context()).Err())
			}
		},
		heal: func(*testing.T, *faultEnv) {},
	},
	{
		name: "FLUSHALL", expect: "all is lost, which is logged, counted and in the status", loses: true, fails: true, lasts: time.Second,
		inject: func(t *testing.T, e *faultEnv) { must(t, e.raw.FlushAll(t.Context()).Err()) },
		heal:   func(*testing.T, *faultEnv) {},
	},
	{
		name: "flapping every second for a minute", expect: "opens and closes with it", opens: true, fails: true, reads: true, lasts: 0,
		inject: flapping(30),
		heal:   func(*testing.T, *faultEnv) {},
	},
}

// flapping takes the connection away for a second and gives it back for one,
// so many times.
func flapping(times int) func(t *testing.T, e *faultEnv) {
	return func(t *testing.T, e *faultEnv) {
		for range times {
			e.proxy.Stop()
			time.Sleep(time.Second)
			must(t, e.proxy.Start())
			time.Sleep(time.Second)
		}
	}
}

// TestFaultMatrix puts the store through each fault under load, and holds it to
// what must always be true. With STOKER_DOCS set to a file it writes the table
// there, between the marks.
func TestFaultMatrix(t *testing.T) {
	var rows []string
	for _, f := range slices.Concat(faults, clockFaults, loginFaults, connectionFaults, evictionFaults()) {
		t.Run(f.name, func(t *testing.T) {
			m := f.run(t)
			rows = append(rows, m.row(f))
			t.Log(rows[len(rows)-1])
		})
	}
	if path := os.Getenv("STOKER_DOCS"); path != "" && !t.Failed() {
		must(t, docmark.Write(path, "fault matrix", table(faultColumns, rows)))
	}
}

func (f fault) run(t *testing.T) measured {
	e := f.startEnv(t)
	stop, watched := make(chan struct{}), make(chan struct{})
	load := e.drive(t, stop)
	eventually(t, 20*time.Second, "the load is on", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.calls) > 500
	})
	var watch sync.WaitGroup
	watch.Go(func() { e.watchBreakers(watched) })

	f.checkWarning(t, e)
	began, healed := f.strike(t, e)
	ok := func(write bool) func() bool {
		return func() bool { return e.answeredSince(healed, write) > 20 }
	}
	eventually(t, 20*time.Second, "reads are answered again", ok(false))
	eventually(t, 20*time.Second, "writes are answered again", ok(true))
	close(stop)
	load.Wait()
	close(watched)
	watch.Wait()
	m := e.measure(t, began, healed)
	f.judge(t, e, m)
	if f.after != nil {
		f.after(t, e)
	}
	return m
}

// strike makes the fault last for as long as it is to, and says from when to when.
func (f fault) strike(t *testing.T, e *faultEnv) (began, healed time.Time) {
	t.Helper()
	began = time.Now()
	f.inject(t, e)
	if left := f.lasts - time.Since(began); left > 0 {
		time.Sleep(left)
	}
	f.heal(t, e)
	return began, time.Now()
}

// answeredSince counts good answers, but for those from memory and from the
// journal.
func (e *faultEnv) answeredSince(at time.Time, write bool) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, c := range slices.Backward(e.calls) {
		if c.begin.Before(at) {
			break
		}
		if c.write == write && c.code == codes.OK && !c.stale && !c.journaled {
			n++
		}
	}
	return n
}

func (e *faultEnv) measure(t *testing.T, began, healed time.Time) measured {
	t.Helper()
	var m measured
	m.writes, m.lost = e.lost(t)
	e.mu.Lock()
	defer e.mu.Unlock()
	m.errors = byCode(e.calls)
	if !e.opened.IsZero() {
		m.opened = e.opened.Sub(began)
	}
	e.checkCodes(t)
	var failed []time.Duration
	first := map[bool]time.Time{}
	for _, c := range e.calls {
		end := c.begin.Add(c.took)
		switch {
		case c.stale:
			m.stale++
		case !c.write && c.code != codes.OK:
			m.failedReads++
		}
		if c.code == codes.Unavailable && !e.opened.IsZero() && c.begin.After(e.opened) && c.begin.Before(healed) {
			failed = append(failed, c.took)
		}
		if c.code == codes.OK && !c.stale && !c.journaled && c.begin.After(healed) && (first[c.write].IsZero() || end.Before(first[c.write])) {
			first[c.write] = end
		}
	}
	slices.Sort(failed)
	if len(failed) > 0 {
		m.failP99 = failed[len(failed)*99/100]
	}
	for _, at := range first {
		m.recovery = max(m.recovery, at.Sub(healed))
	}
	return m
}

// checkCodes reports calls that failed as only a defect of ours may. The caller holds
// e.mu.
func (e *faultEnv) checkCodes(t *testing.T) {
	t.Helper()
	for _, c := range e.calls {
		if c.code == codes.Internal || c.code == codes.Unknown || c.code == codes.DataLoss {
			t.Errorf("a call was answered %v: no fault of Redis is one of ours", c.code)
			return
		}
	}
}

// judge holds a row to what it promises.
func (f fault) judge(t *testing.T, e *faultEnv, m measured) {
	t.Helper()
	e.mu.Lock()
	missing, opened, badMarks := e.missing, !e.opened.IsZero(), e.badMarks
	e.mu.Unlock()
	if len(badMarks) > 0 {
		t.Errorf("%d answers are marked wrongly: %v", len(badMarks), badMarks[0])
	}
	if m.writes < 300 {
		t.Errorf("only %d writes were acknowledged: too few to tell anything", m.writes)
	}
	if !f.either {
		f.judgeAnswers(t, m, opened)
	}
	// While the machine is busy, each timeout is extended by as much again.
	if limit := 2*faultFailures*faultTimeout + time.Second; m.opened > limit && f.lasts > 0 {
		t.Errorf("opened after %v, want at most %v", m.opened, limit)
	}
	if limit := faultDelay + time.Second + f.slack; m.recovery > limit {
		t.Errorf("recovered after %v, want at most %v", m.recovery, limit)
	}
	f.checkWarning(t, e)
	st := e.status(t)
	if f.evicts {
		if m.lost == 0 {
			t.Errorf("none of %d acknowledged writes was evicted", m.writes)
		}
		return
	}
	if f.loses {
		if m.lost == 0 || st.GetDataLossTime() == nil {
			t.Errorf("%d writes lost, told %v", m.lost, st)
		}
		return
	}
	if m.lost > 0 || missing > 0 || st.GetDataLossTime() != nil {
		t.Errorf("%d of %d acknowledged writes lost, %d sessions not found meanwhile, %v", m.lost, m.writes, missing, st)
	}
}

// judgeAnswers holds a row to what it promises of the answers.
func (f fault) judgeAnswers(t *testing.T, m measured, opened bool) {
	t.Helper()
	if f.reads != (m.stale > 0) || f.reads && m.failedReads > 0 {
		t.Errorf("%d reads were answered from memory, which there must be: %v; %d failed", m.stale, f.reads, m.failedReads)
	}
	if failed := m.errors != "none"; failed != f.fails {
		t.Errorf("failed calls: %s; that there are any must be %v", m.errors, f.fails)
	}
	if f.opens != opened {
		t.Errorf("a breaker opened: %v, want %v", opened, f.opens)
	}
}

// checkWarning waits for the warning that a row is to have.
func (f fault) checkWarning(t *testing.T, e *faultEnv) {
	t.Helper()
	if f.warns != "" {
		eventually(t, 10*time.Second, "the status warns of "+f.warns, func() bool { return e.warning(t, f.warns) != nil })
	}
}

func (m measured) row(f fault) string {
	return fmt.Sprintf("| %s | %s | %s | %d | %s | %s | %s | %d of %d |", f.name, f.expect, m.errors, m.stale, show(m.opened), show(m.failP99), show(m.recovery), m.lost, m.writes)
}

// show spells a duration of the table.
func show(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(time.Millisecond).String()
	}
}

// faultColumns head the table.
var faultColumns = []string{
	"Fault", "Expected", "Failed calls", "Reads answered from memory", "Time to open", "p99 of a failing call while open", "Time to recover",
	"Acknowledged writes lost",
}

// table spells rows for docmark.Write.
func table(columns, rows []string) string {
	head := []string{"| " + strings.Join(columns, " | ") + " |", "|" + strings.Repeat("---|", len(columns))}
	return strings.Join(append(head, rows...), "\n")
}
