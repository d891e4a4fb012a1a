package lifecycle

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// HeapRoom is how much garbage a server may make between two collections,
// however little it keeps, in bytes.
const HeapRoom = 64 << 20

// leastHeap is the heap at which Go's own pace begins, in bytes: below it a
// percentage says more than it should.
const leastHeap = 4 << 20

// KeepHeapRoom lets a process whose live heap is smaller than room allocate
// room bytes between two garbage collections, instead of as much as is alive:
// a server that keeps little and answers much would collect all the time. A
// live heap larger than room is collected at Go's own pace, and a memory limit
// (GOMEMLIMIT) goes before. Where GOGC is set, nothing is changed. The caller
// must call stop, which puts back what was.
func KeepHeapRoom(room uint64) (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	h := &heap{room: room, percent: 100}
	h.before = debug.SetGCPercent(h.percent)
	h.pace(nil)
	return h.stop
}

type heap struct {
	room   uint64
	before int

	mu      sync.Mutex
	percent int
	stopped bool
}

// mark is garbage as soon as it is made: that it is cleaned up says that there
// was a collection.
type mark struct{ _ *int }

// pace sets the pace for what is alive now, and again after each collection.
func (h *heap) pace(*struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return
	}
	// Setting it stops the world for a moment: not for nothing.
	if p := percent(h.room, scanned()); p > h.percent+h.percent/8 || p < h.percent-h.percent/8 || p == 100 && h.percent != 100 {
		h.percent = p
		debug.SetGCPercent(p)
	}
	runtime.AddCleanup(&mark{}, h.pace, nil)
}

func (h *heap) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	debug.SetGCPercent(h.before)
}

// percent returns the GC percentage that leaves room.
func percent(room, alive uint64) int {
	return int(max(100, room*100/max(alive, leastHeap))) //nolint:gosec // room/leastHeap bounds it
}

// scanned returns what the pace is a percentage of: what the latest collection
// found alive, stacks and globals.
func scanned() uint64 {
	read := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(read)
	var sum uint64
	for _, s := range read {
		if s.Value.Kind() == metrics.KindUint64 {
			sum += s.Value.Uint64()
		}
	}
	return sum
}
