package memory_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// clock is a clock that only moves when told to.
func options(c *storagetest.Clock, dir string) memory.Options {
	o := storagetest.OptionsFor(time.Second)
	return memory.Options{
		Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention,
		Clock: c.Now, DataDir: dir,
	}
}

func open(t testing.TB, o memory.Options) *memory.Store {
	t.Helper()
	s, err := memory.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fixture(t testing.TB, dir string) storagetest.Fixture {
	t.Helper()
	c := storagetest.NewClock()
	s := open(t, options(c, dir))
	return storagetest.Fixture{
		Store: s, Unit: time.Second, Now: c.Now, Advance: c.Advance,
		Entries: func() int { return int(s.Status(t.Context()).Entries) },
	}
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		return fixture(t, "")
	}, nil)
}

func TestConformanceDurable(t *testing.T) {
	storagetest.Run(t, func(t testing.TB) storagetest.Fixture {
		t.Helper()
		return fixture(t, t.TempDir())
	}, nil)
}

func TestMain(m *testing.M) {
	if childDir() != "" {
		childMain()
		return
	}
	goleak.VerifyTestMain(m)
}
