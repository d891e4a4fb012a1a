//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestLedgerTells plants what a store could get wrong, by changing what it is
// said to have promised: the ledger must tell each of them, and nothing of a
// store that is right.
func TestLedgerTells(t *testing.T) {
	store := sessionv1.NewStorageServiceClient(openStore(t, nil, "--storage", "memory"))
	for name, c := range map[string]struct {
		plant func(l *ledger, busy, ended, deleted string)
		lost  int
		wrong string
	}{
		"nothing":             {func(*ledger, string, string, string) {}, 0, ""},
		"an event is lost":    {func(l *ledger, busy, _, _ string) { l.told[busy].events = append(l.told[busy].events, "more") }, 1, ""},
		"events in disorder":  {func(l *ledger, busy, _, _ string) { slices.Reverse(l.told[busy].events) }, 0, "is before one that it came after"},
		"an update is lost":   {func(l *ledger, busy, _, _ string) { l.told[busy].label++; l.told[busy].tried++ }, 1, "has label"},
		"an update from none": {func(l *ledger, busy, _, _ string) { l.told[busy].tried = 0; l.told[busy].label = 0 }, 0, "has label"},
		"an end is lost":      {func(l *ledger, busy, _, _ string) { l.told[busy].ending, l.told[busy].ended = true, true }, 1, "reads as live"},
		"an end from none":    {func(l *ledger, _, ended, _ string) { l.told[ended].ending, l.told[ended].ended = false, false }, 0, "reads as ended"},
		"a deletion is lost":  {func(l *ledger, busy, _, _ string) { l.told[busy].deleting, l.told[busy].deleted = true, true }, 1, "was deleted, and was answered"},
		"a session is lost": {func(l *ledger, _, _, deleted string) {
			l.told[deleted].deleting, l.told[deleted].deleted = false, false
		}, 1, "is there, and was answered"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(func(faultCall, error) {})
			w := &writer{ledger: l, store: store, user: "ann"}
			ctx := context.WithoutCancel(t.Context())
			for range 3 {
				w.create(ctx)
			}
			busy, ended, deleted := w.mine[0], w.mine[1], w.mine[2]
			for range 3 {
				w.n++
				w.event(ctx, busy)
			}
			w.update(ctx, busy)
			w.end(ctx, ended)
			w.remove(ctx, deleted)
			c.plant(l, busy, ended, deleted)
			lost := l.lost(t, store)
			if said := strings.Join(l.wrong, "; "); lost != c.lost || c.wrong == "" && said != "" || !strings.Contains(said, c.wrong) {
				t.Errorf("%d lost, said %q; want %d and %q", lost, said, c.lost, c.wrong)
			}
		})
	}
}
