//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/redistest"
)

// serviceWithin is how soon after the promotion the store must serve, whatever the
// delay of its breakers.
const serviceWithin = 2 * time.Second

var sentinelKill = scenario{
	name: "Sentinel: the master is killed", expect: "service within 2 s of the promotion, with breakers that wait 30 s; what is lost is reported",
	run: func(t *testing.T, store ...string) string {
		t.Helper()
		d := startSentinelEnv(t, redistest.SentinelOptions{}, nil, store)
		former := d.sentinel.Servers[0]
		began := time.Now()
		must(t, former.Kill())
		_, promoted := d.sentinel.AwaitPromotion(t, former)
		return d.judgeFailover(t, began, promoted, promoted)
	},
}

// sentinelFailover is a planned one, with logins of their own for the servers and the
// Sentinels.
var sentinelFailover = scenario{
	name: "Sentinel: planned failover", expect: "service within 2 s of the promotion; what is lost is reported",
	run: func(t *testing.T, store ...string) string {
		t.Helper()
		opts := redistest.SentinelOptions{Password: "data-secret", SentinelPassword: "sentinel-secret"}
		file := filepath.Join(t.TempDir(), "sentinel-password")
		must(t, os.WriteFile(file, []byte(opts.SentinelPassword+"\n"), 0o600))
		d := startSentinelEnv(t, opts, []string{"--redis-sentinel-password-file", file}, store)
		former := d.sentinel.Servers[0]
		began := time.Now()
		d.sentinel.Failover(t)
		_, promoted := d.sentinel.AwaitPromotion(t, former)
		d.sentinel.AwaitReplica(t, former)
		return d.judgeFailover(t, began, promoted, time.Now())
	},
}

// startSentinelEnv starts a store behind Sentinels, under load. Its breakers have the
// default delay, which no service may wait for.
func startSentinelEnv(t *testing.T, opts redistest.SentinelOptions, args, store []string) *driven {
	t.Helper()
	opts.Args = []string{"--appendonly", "yes", "--appendfsync", "everysec"}
	f := fault{start: func(t *testing.T, e *faultEnv) []string {
		t.Helper()
		e.sentinel = redistest.StartSentinel(t, opts)
		e.url = e.sentinel.URL()
		return append([]string{"--redis-url", e.url}, args...)
	}}
	return f.startEnv(t, append([]string{"--breaker-delay", "30s"}, store...)...).driveWithEnds(t)
}

// judgeFailover holds the store to a failover that began at one time, promoted a
// replica at another, and left no second master at the last.
func (d *driven) judgeFailover(t *testing.T, began, promoted, demoted time.Time) string {
	t.Helper()
	var read, write time.Time
	eventually(t, 40*time.Second, "reads and writes are answered by the new master", func() bool {
		read, write = d.firstGood(promoted, false), d.firstGood(promoted, true)
		return !read.IsZero() && !write.IsZero()
	})
	service := write
	if read.After(write) {
		service = read
	}
	waited := service.Sub(promoted)
	if waited > serviceWithin {
		t.Errorf("service %v after the promotion, want at most %v", waited, serviceWithin)
	}
	// It must last: once the journal is empty, no call fails, but for those of lost
	// sessions.
	eventually(t, 20*time.Second, "all is replayed, under load", func() bool { return d.status(t).GetJournalDepth() == 0 })
	settled := time.Now()
	if demoted.After(settled) {
		settled = demoted
	}
	time.Sleep(2 * time.Second) // of load
	d.finish(t)
	good, bad := d.countSince(settled.Add(500 * time.Millisecond))
	if good < 300 || bad > 0 {
		t.Errorf("half a second after service is back: %d good calls, want 300, and %d bad ones, want none", good, bad)
	}
	eventually(t, 20*time.Second, "the journal is empty", func() bool { return d.status(t).GetJournalDepth() == 0 })
	writes, lost := d.lost(t)
	d.checkGone(t, began.Add(-5*time.Second), demoted.Add(faultTimeout))
	span, reported := d.checkReported(t)
	seen := fmt.Sprintf("promoted after %s, service %s later; %d of %d acknowledged writes lost", show(promoted.Sub(began)), show(waited), lost, writes)
	if lost > 0 {
		first, last := d.goneWithin()
		seen += fmt.Sprintf(", acknowledged from %v to %v after the promotion", first.Sub(promoted).Round(time.Millisecond), last.Sub(promoted).Round(time.Millisecond))
	}
	if reported {
		seen += fmt.Sprintf("; reported, back by %s", show(span))
	}
	return seen
}

// firstGood returns when a good answer was first given to a call that began after
// a time, from Redis.
func (e *faultEnv) firstGood(after time.Time, write bool) (at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.calls {
		if end := c.begin.Add(c.took); c.write == write && c.code == codes.OK && !c.stale && !c.journaled && c.begin.After(after) && (at.IsZero() || end.Before(at)) {
			at = end
		}
	}
	return at
}

// countSince counts the calls that began after a time. NOT_FOUND is neither good nor
// bad: a session may be lost.
func (e *faultEnv) countSince(at time.Time) (good, bad int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.calls {
		switch {
		case c.begin.Before(at) || c.code == codes.NotFound:
		case c.code == codes.OK && !c.stale:
			good++
		default:
			bad++
		}
	}
	return good, bad
}

// goneWithin returns when the first and the last write that is lost was acknowledged.
func (e *faultEnv) goneWithin() (first, last time.Time) {
	for _, g := range e.gone {
		if first.IsZero() || g.at.Before(first) {
			first = g.at
		}
		if g.at.After(last) {
			last = g.at
		}
	}
	return first, last
}
