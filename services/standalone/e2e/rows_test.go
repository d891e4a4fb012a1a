//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/standalone/internal/docmark"
)

// scenario is a row of the deployment matrix: what happens to a deployment takes
// measures of its own.
type scenario struct {
	name, expect string
	// run makes it happen to a store with more arguments, and returns what was seen.
	run func(t *testing.T, store ...string) (seen string)
	// journalOnly: there is nothing to see without a data directory.
	journalOnly bool
}

var scenarios = []scenario{sentinelKill, sentinelFailover, restoredSnapshot, restoredMeanwhile, fullMemory}

// TestDeploymentMatrix puts the store through what happens to a Redis that people run.
// With STOKER_DOCS set to a file it writes the table there, between marks of its own.
func TestDeploymentMatrix(t *testing.T) {
	var rows []string
	for _, s := range scenarios {
		for _, journal := range []string{"off", "on"} {
			if s.journalOnly && journal == "off" {
				continue
			}
			t.Run(s.name+", journal "+journal, func(t *testing.T) {
				var args []string
				if journal == "on" {
					args = []string{"--data-dir", t.TempDir()}
				}
				rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |", s.name, journal, s.expect, s.run(t, args...)))
				t.Log(rows[len(rows)-1])
			})
		}
	}
	if path := os.Getenv("STOKER_DOCS"); path != "" && !t.Failed() {
		must(t, docmark.Write(path, "deployment matrix", table([]string{"What happens", "Journal", "Expected", "Seen"}, rows)))
	}
}

// driven is a store under load.
type driven struct {
	*faultEnv
	stop  chan struct{}
	load  *sync.WaitGroup
	ender *ender
}

// driveWithEnds puts load on the store, and ends sessions meanwhile.
func (e *faultEnv) driveWithEnds(t *testing.T) *driven {
	t.Helper()
	d := &driven{faultEnv: e, stop: make(chan struct{}), ender: &ender{store: e.store}}
	d.load = e.drive(t, d.stop)
	d.load.Go(func() { pace(d.stop, d.ender.step) })
	eventually(t, 20*time.Second, "the load is on", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.calls) > 500 && d.ender.count() > 20
	})
	return d
}

// finish ends the load, and reports what no deployment may show: failures that are
// defects, too little load, and sessions that are live again.
func (d *driven) finish(t *testing.T) {
	t.Helper()
	close(d.stop)
	d.load.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.checkCodes(t)
	if d.ender.count() < 30 {
		t.Errorf("only %d sessions were ended: too few to tell anything", d.ender.count())
	}
	if r := d.ender.revived; len(r) > 0 {
		t.Errorf("%d sessions that were over read as live, among them: %s", len(r), r[0])
	}
}

// checkGone reports acknowledged writes that are not there though they were
// acknowledged outside of a time in which writes may be lost.
func (e *faultEnv) checkGone(t *testing.T, from, to time.Time) {
	t.Helper()
	if g := e.findUnexpectedGone(from, to); g != nil {
		t.Errorf("a write acknowledged %v before writes may be lost, or %v after, is not there: %+v", from.Sub(g.at), g.at.Sub(to), *g)
	}
}

// findUnexpectedGone returns a lost write that was acknowledged outside of a time, nil
// for none. Events of a session that is lost are lost with it.
func (e *faultEnv) findUnexpectedGone(from, to time.Time) *goneWrite {
	sessions := map[string]bool{}
	for _, g := range e.gone {
		if g.event == "" {
			sessions[g.id] = true
		}
	}
	for i, g := range e.gone {
		if (g.at.Before(from) || g.at.After(to)) && (g.event == "" || !sessions[g.id]) {
			return &e.gone[i]
		}
	}
	return nil
}

// checkReported holds the status to the loss: where acknowledged writes are gone, it
// must say so, and how far back the data has gone. It returns that.
func (e *faultEnv) checkReported(t *testing.T) (span time.Duration, reported bool) {
	t.Helper()
	if len(e.gone) > 0 {
		eventually(t, 10*time.Second, fmt.Sprintf("the loss of %d acknowledged writes is in the status", len(e.gone)), func() bool {
			return e.status(t).GetDataLossTime() != nil && e.status(t).GetDataLossSpan().AsDuration() > 0
		})
	}
	st := e.status(t)
	return st.GetDataLossSpan().AsDuration(), st.GetDataLossTime() != nil
}

// ender creates sessions, and ends, deletes or revokes them at once. What it has seen
// to be over must never read as live on the same replica.
type ender struct {
	store sessionv1.StorageServiceClient

	mu      sync.Mutex
	over    []string
	deleted map[string]bool
	n       int
	revived []string
}

func (d *ender) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.over)
}

func (d *ender) step(ctx context.Context) {
	d.n++
	if d.n%4 != 0 {
		d.look(ctx)
		return
	}
	user := fmt.Sprint("over-", d.n)
	s, err := d.store.CreateSession(ctx, &sessionv1.CreateSessionRequest{User: user})
	if err != nil {
		return
	}
	kind, revoked := d.n/4%3, &sessionv1.RevokeUserSessionsResponse{Count: 1}
	switch kind {
	case 0:
		_, err = d.store.EndSession(ctx, &sessionv1.EndSessionRequest{Id: s.GetId()})
	case 1:
		_, err = d.store.DeleteSession(ctx, &sessionv1.DeleteSessionRequest{Id: s.GetId()})
	default:
		revoked, err = d.store.RevokeUserSessions(ctx, &sessionv1.RevokeUserSessionsRequest{User: user})
	}
	if err != nil || revoked.GetCount() != 1 {
		return // the session may have been lost before it was ended
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deleted == nil {
		d.deleted = map[string]bool{}
	}
	d.over, d.deleted[s.GetId()] = append(d.over, s.GetId()), kind == 1
}

func (d *ender) look(ctx context.Context) {
	d.mu.Lock()
	if len(d.over) == 0 {
		d.mu.Unlock()
		return
	}
	id := d.over[rand.IntN(len(d.over))]
	deleted := d.deleted[id]
	d.mu.Unlock()
	s, err := d.store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id})
	if status.Code(err) == codes.OK && (deleted || s.GetEndTime() == nil) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.revived = append(d.revived, fmt.Sprintf("%s, deleted: %v: %v", id, deleted, s))
	}
}
