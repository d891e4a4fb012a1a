//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// backBy is how far a restored snapshot goes back.
const backBy = 2 * time.Second

var restoredSnapshot = scenario{
	name: "an older snapshot is restored", expect: "the loss is reported, and how far back; what was over stays over; readers go on",
	run: func(t *testing.T, store ...string) string {
		t.Helper()
		f := fault{redis: []string{"--appendonly", "no"}, start: startAlone}
		d := f.startEnv(t, store...).driveWithEnds(t)
		id := d.pick()
		dump := redistest.TakeSnapshot(t, d.redis)
		taken := time.Now()
		time.Sleep(backBy) // of load, which is what will be lost
		cursor := d.appendOne(t, id, "before-the-restore")
		killed := time.Now()
		redistest.RestoreSnapshot(t, d.redis, dump)
		restored := time.Now()
		eventually(t, 10*time.Second, "the status has the loss", func() bool { return d.status(t).GetDataLossTime() != nil })
		noticed := time.Since(restored)
		d.checkReader(t, id, cursor)
		time.Sleep(2 * time.Second) // of load, in which what was over could read as live
		d.finish(t)
		eventually(t, 20*time.Second, "the journal is empty", func() bool { return d.status(t).GetJournalDepth() == 0 })
		writes, lost := d.lost(t)
		if lost == 0 {
			t.Errorf("none of %d acknowledged writes is lost: nothing was restored", writes)
		}
		d.checkGone(t, taken.Add(-faultTimeout), restored.Add(faultTimeout))
		span, _ := d.checkReported(t)
		checkSpan(t, span, killed.Sub(taken))
		return fmt.Sprintf("noticed after %s, back by %s (%s in truth); %d of %d acknowledged writes lost, all from that time; %d sessions that were over stayed so",
			show(noticed), show(span), show(killed.Sub(taken)), lost, writes, d.ender.count())
	},
}

// restoredMeanwhile is for a store that was stopped when it happened: its data
// directory knows.
var restoredMeanwhile = scenario{
	name: "an older snapshot is restored while the store is stopped", expect: "the loss is reported by the store that starts again on its data directory", journalOnly: true,
	run: func(t *testing.T, store ...string) string {
		t.Helper()
		server := redistest.Start(t, "--appendonly", "no")
		alone := func(_ *testing.T, e *faultEnv) []string {
			e.redis, e.url = server, server.URL()
			return []string{"--redis-url", e.url}
		}
		var dump []byte
		var taken, killed time.Time
		t.Run("before", func(t *testing.T) {
			d := fault{start: alone}.startEnv(t, store...).driveWithEnds(t)
			dump, taken = redistest.TakeSnapshot(t, server), time.Now()
			time.Sleep(backBy)
			d.finish(t)
			killed = time.Now()
			if d.status(t).GetDataLossTime() != nil {
				t.Error("a loss is reported before there is any")
			}
		})
		redistest.RestoreSnapshot(t, server, dump)
		var span time.Duration
		t.Run("after", func(t *testing.T) {
			e := fault{start: alone}.startEnv(t, store...)
			eventually(t, 10*time.Second, "the status has the loss", func() bool { return e.status(t).GetDataLossTime() != nil })
			span = e.status(t).GetDataLossSpan().AsDuration()
		})
		if !t.Failed() {
			checkSpan(t, span, killed.Sub(taken))
		}
		return fmt.Sprintf("back by %s (%s in truth)", show(span), show(killed.Sub(taken)))
	},
}

// checkSpan holds what the status says of how far the data is back to the truth.
func checkSpan(t *testing.T, reported, truth time.Duration) {
	t.Helper()
	if reported < truth-time.Second || reported > truth+2*time.Second {
		t.Errorf("the data is reported to be back by %v, it is by %v", reported, truth)
	}
}

// appendOne appends an event and returns its cursor. Like any client it makes the same
// call again while the store is unavailable.
func (e *faultEnv) appendOne(t *testing.T, id, event string) (cursor string) {
	t.Helper()
	eventually(t, 5*time.Second, "an event is accepted", func() bool {
		resp, err := e.store.AppendEvents(t.Context(), &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Id: event, Type: "input:text"}}})
		if status.Code(err) == codes.Unavailable {
			return false
		}
		must(t, err)
		cursor = resp.GetCursors()[0]
		return true
	})
	return cursor
}

// checkReader holds a reader, whose cursor is of events that are gone, to hearing of
// that, and of what is appended from now on.
func (e *faultEnv) checkReader(t *testing.T, id, cursor string) {
	t.Helper()
	heard, truncated := map[string]bool{}, false
	e.appendOne(t, id, "after-the-restore")
	eventually(t, 10*time.Second, "a reader whose cursor is ahead of the log goes on", func() bool {
		page, err := e.store.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, After: &cursor, Limit: 1000})
		if status.Code(err) == codes.Unavailable {
			return false // a reader asks again
		}
		must(t, err)
		for _, ev := range page.GetEvents() {
			heard[ev.GetId()] = true
		}
		truncated = truncated || page.GetTruncated()
		cursor = page.GetNextCursor()
		return heard["after-the-restore"]
	})
	if !truncated {
		t.Error("a reader whose cursor was ahead of the log did not learn that events are gone")
	}
}
