//go:build e2e

package e2e

import (
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestEnderTells plants sessions that are live into what the ender takes for over: it
// must tell of each, and of none that is over.
func TestEnderTells(t *testing.T) {
	store := sessionv1.NewStorageServiceClient(openStore(t, nil, "--storage", "memory"))
	d := &ender{store: store}
	for range 4 * 12 {
		d.step(t.Context())
	}
	if d.count() != 12 || len(d.revived) > 0 {
		t.Fatalf("%d sessions are over, want 12; live again: %v", d.count(), d.revived)
	}
	for _, deleted := range []bool{false, true} {
		live, err := store.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ann"})
		must(t, err)
		planted := &ender{store: store, over: []string{live.GetId()}, deleted: map[string]bool{live.GetId(): deleted}}
		if planted.look(t.Context()); len(planted.revived) != 1 {
			t.Errorf("a live session, deleted: %v, is not told of", deleted)
		}
	}
}

// TestGoneTells plants losses at times at which there may be none.
func TestGoneTells(t *testing.T) {
	from := time.Now()
	to := from.Add(time.Second)
	for name, c := range map[string]struct {
		gone []goneWrite
		told bool
	}{
		"within":                        {[]goneWrite{{id: "a", event: "e", at: from.Add(time.Millisecond)}}, false},
		"before":                        {[]goneWrite{{id: "a", event: "e", at: from.Add(-time.Millisecond)}}, true},
		"after":                         {[]goneWrite{{id: "a", event: "e", at: to.Add(time.Millisecond)}}, true},
		"a creation before":             {[]goneWrite{{id: "a", at: from.Add(-time.Millisecond)}}, true},
		"an event of a session lost":    {[]goneWrite{{id: "a", event: "e", at: to.Add(time.Hour)}, {id: "a", at: from.Add(time.Millisecond)}}, false},
		"an event of another one, late": {[]goneWrite{{id: "b", event: "e", at: to.Add(time.Hour)}, {id: "a", at: from.Add(time.Millisecond)}}, true},
	} {
		e := &faultEnv{gone: c.gone}
		if told := e.findUnexpectedGone(from, to) != nil; told != c.told {
			t.Errorf("%s: told of: %v, want %v", name, told, c.told)
		}
	}
}
