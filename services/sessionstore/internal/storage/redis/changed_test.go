package redis_test

import (
	"sync"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/pkg/redistest"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestChanged: what another replica does to a session is told here.
func TestChanged(t *testing.T) {
	server := redistest.Start(t)
	var told sync.Map
	open(t, server.URL(), func(o *redis.Options) { o.Changed = func(id string) { told.Store(id, true) } })
	other := open(t, server.URL())
	// A store follows from where the feed ended when it began to.
	storagetest.Until(t, "the feed is followed", func() bool {
		id, _ := create(t, other, newSession(1, "ann", time.Hour), "")
		time.Sleep(10 * time.Millisecond) // the pace of the attempts
		_, ok := told.Load(id)
		return ok
	})
	id, _ := create(t, other, newSession(2, "bob", time.Hour), "")
	storagetest.Until(t, "its creation is told", func() bool { _, ok := told.LoadAndDelete(id); return ok })
	if _, err := other.End(t.Context(), id, "done"); err != nil {
		t.Fatal(err)
	}
	storagetest.Until(t, "its end is told", func() bool { _, ok := told.LoadAndDelete(id); return ok })
}
