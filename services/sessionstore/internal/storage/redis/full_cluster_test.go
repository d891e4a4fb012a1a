//go:build e2e

package redis_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestFullMasterOfACluster: what is on the full master ends and is deleted, and its
// slots may move meanwhile; the other masters notice nothing.
func TestFullMasterOfACluster(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	breakers := resilience.NewRegistry(resilience.BreakerConfig{Delay: time.Hour}, nil)
	s := open(t, cluster.URL(), func(o *redis.Options) { o.Breakers = breakers })
	slot := cluster.SlotOf(t, "{s1}")
	full := cluster.MasterOf(t, slot)
	other := -1
	for n := range storagetest.Shards {
		if cluster.MasterOf(t, cluster.SlotOf(t, fmt.Sprintf("{s%d}", n))) != full {
			other = n
		}
	}
	if other < 0 {
		t.Fatal("one master has all shards")
	}
	var ids []string
	for range 3 {
		id, _ := create(t, s, newSession(1, "ann", time.Hour), "")
		ids = append(ids, id)
	}
	setConfig(t, raw(t, cluster.Node(t, full)), "maxmemory", "1")
	opened := func() bool {
		for _, b := range breakers.List() {
			if b.Class == redis.ClassWrite && b.Node == full {
				return b.State == resilience.Open
			}
		}
		return false
	}
	storagetest.Until(t, "its write breaker opens", func() bool {
		if _, _, err := s.Create(t.Context(), newSession(1, "bob", time.Hour), ""); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("a creation on the full master: %v", err)
		}
		return opened()
	})
	create(t, s, newSession(other, "bob", time.Hour), "")
	if _, err := s.End(t.Context(), ids[0], "done"); err != nil {
		t.Errorf("ending: %v", err)
	}
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Errorf("sweeping: %v", err)
	}
	// With the record on its way, a script is refused before it runs.
	masters := cluster.Masters(t)
	to := masters[0]
	if to == full {
		to = masters[1]
	}
	cluster.OpenSlot(t, slot, full, to)
	record := "stoker:{s1}:session:" + ids[1]
	if err := cluster.MigrateKeys(t, full, to, record); err != nil {
		t.Fatal(err)
	}
	before := cluster.CountErrors(t, "TRYAGAIN")
	if _, err := s.End(t.Context(), ids[1], "done"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("ending a session whose slot moves: %v", err)
	}
	if cluster.CountErrors(t, "TRYAGAIN") == before {
		t.Error("no script met the moving slot")
	}
	if err := cluster.MigrateKeys(t, full, to, cluster.KeysInSlot(t, full, slot)...); err != nil {
		t.Fatal(err)
	}
	cluster.FinishSlot(t, slot, full, to)
	storagetest.Until(t, "the session that moved ends", func() bool {
		_, err := s.End(t.Context(), ids[1], "done")
		return err == nil
	})
	if wrong := cluster.Misplaced(t, "{s1}"); len(wrong) > 0 {
		t.Error(wrong)
	}
}
