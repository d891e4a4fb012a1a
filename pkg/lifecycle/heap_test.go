package lifecycle

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercentLeavesRoom(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		room, alive uint64
		want        int
	}{
		{64 * mib, 0, 1600}, {64 * mib, 4 * mib, 1600}, {64 * mib, 8 * mib, 800}, {64 * mib, 64 * mib, 100}, {64 * mib, 1 << 40, 100}, {0, 1, 100},
	} {
		if got := percent(c.room, c.alive); got != c.want {
			t.Errorf("%d bytes of room over %d alive: %d %%, want %d", c.room, c.alive, got, c.want)
		}
	}
}

// current returns the GC percentage.
func current() int {
	read := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(read)
	return int(read[0].Value.Uint64())
}

// TestHeapRoomFollowsTheHeap: little garbage is not collected, a large heap is
// collected at the usual pace, and a heap that was large has room again.
func TestHeapRoomFollowsTheHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	runtime.GC()
	stop := KeepHeapRoom(HeapRoom)
	if p := current(); p <= 400 || p > 1600 {
		t.Errorf("a small heap has %d %%", p)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range HeapRoom / 2 / 1024 {
		kept = make([]byte, 1024)
	}
	runtime.ReadMemStats(&after)
	if n := after.NumGC - before.NumGC; n > 1 {
		t.Errorf("half the room took %d collections", n)
	}
	kept = make([]byte, 2*HeapRoom)
	settles(t, 100, 100)
	runtime.KeepAlive(kept)
	kept = nil
	settles(t, 400, 1600)
	stop()
	settles(t, 100, 100)
}

// kept is alive: a variable of a test might not be.
var kept []byte

// settles waits until collections have led to a percentage.
func settles(t *testing.T, least, most int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		p := current()
		if p >= least && p <= most {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("got %d %%, want %d to %d", p, least, most)
		}
		runtime.Gosched()
	}
}

func TestHeapRoomLeavesGOGCAlone(t *testing.T) {
	t.Setenv("GOGC", "300")
	before := debug.SetGCPercent(300)
	defer debug.SetGCPercent(before)
	stop := KeepHeapRoom(HeapRoom)
	if p := current(); p != 300 {
		t.Errorf("GOGC=300 became %d %%", p)
	}
	stop()
	if p := current(); p != 300 {
		t.Errorf("GOGC=300 became %d %%", p)
	}
}
