package redis_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestLongLossIsToldToReadersBehindIt: readers of a session that has lost an event learn
// of it, however many events of others were lost after it.
func TestLongLossIsToldToReadersBehindIt(t *testing.T) {
	server := redistest.Start(t)
	client := raw(t, server)
	s, _ := sweeping(t, server.URL())
	ctx := t.Context()
	quiet, busy := sessionOn(t, s, 1), sessionOn(t, s, 2)
	kept := page(t, s, quiet, "0", 0).Next
	marked(t, client, 1)
	save(t, client)
	marked(t, client, 1)
	if _, err := s.Append(ctx, quiet, []*sessionv1.Event{{Id: "lost", Type: "input:text"}}); err != nil {
		t.Fatal(err)
	}
	for i := range 170 {
		var events []*sessionv1.Event
		for j := range 100 {
			events = append(events, &sessionv1.Event{Id: fmt.Sprint(i, "-", j), Type: "input:text"})
		}
		if _, err := s.Append(ctx, busy, events); err != nil {
			t.Fatal(err)
		}
		if i%5 == 0 {
			storagetest.Until(t, "the feed was read", func() bool { return s.Seen(2) == feedEnd(t, client, "stoker:{s2}:feed") })
		}
	}
	storagetest.Until(t, "the feed was read", func() bool { return s.Seen(2) == feedEnd(t, client, "stoker:{s2}:feed") })
	restore(t, server)
	detected(t, s, 1)
	storagetest.Until(t, "both sessions are marked", func() bool {
		time.Sleep(5 * time.Millisecond) // the pace of the attempts
		return client.HExists(ctx, "stoker:{s2}:session:"+busy, "gap").Val() && client.HExists(ctx, "stoker:{s1}:session:"+quiet, "gap").Val()
	})
	if _, err := s.Append(ctx, quiet, []*sessionv1.Event{{Id: "new", Type: "input:text"}}); err != nil {
		t.Fatal(err)
	}
	if p := page(t, s, quiet, kept, 0); !p.Truncated || len(p.Events) != 1 {
		t.Errorf("a lost event was skipped in silence: %+v", p)
	}
}
