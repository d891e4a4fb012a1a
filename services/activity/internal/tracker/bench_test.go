package tracker

import (
	"fmt"
	"runtime"
	"testing"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// fill tracks this many sessions with nothing to report. Ids are as long as
// the store's.
func fill(b *bench, n int) {
	for from := 0; from < n; from += 1000 {
		var entries []*sessionv1.FeedEntry
		for i := from; i < min(n, from+1000); i++ {
			entries = append(entries, b.entry(int32(i%64), id(i), "registry:updated", b.now))
		}
		b.Observe(entries, b.now)
		for ids := b.Unresolved(b.now, 1000); len(ids) > 0; ids = b.Unresolved(b.now, 1000) {
			var answers []Answer
			for _, one := range ids {
				answers = append(answers, Answer{SessionID: one, Session: aSession(one, base)})
			}
			b.Resolve(answers, b.now, b.now)
		}
		b.Acks(nil)
	}
}

func id(i int) string { return fmt.Sprintf("%029d", i) }

// BenchmarkObserve is the whole way of an event through policy and tracker, on
// one core: observed, judged, coalesced, reported once per flush interval,
// answered and acknowledged.
func BenchmarkObserve(tb *testing.B) {
	for _, sessions := range []int{1, 1000, 100_000, 1_000_000} {
		tb.Run(fmt.Sprint(sessions, "sessions"), func(tb *testing.B) {
			b := newBench(tb, func(c *Config) { c.MaxTracked = 1 << 21 })
			fill(b, sessions)
			const batch = 1000
			entries := make([]*sessionv1.FeedEntry, batch)
			for i := range entries {
				entries[i] = b.entry(0, "", "command:run", b.now)
			}
			var acks []Ack
			next, seq := 0, int64(1<<40)
			tb.ReportAllocs()
			tb.ResetTimer()
			for done := 0; done < tb.N; done += batch {
				tb.StopTimer()
				for _, e := range entries {
					// A stride over the sessions, so that caches do not help.
					next = (next + 7919) % sessions
					seq++
					e.Shard, e.SessionId = int32(next%64), id(next)
					e.Cursor = fmt.Sprintf("%d-%d", b.now, seq)
					*e.Event.Time = *ts(b.now)
				}
				tb.StartTimer()
				b.Observe(entries, b.now)
				b.now++ // a million events a second
				all := b.Outstanding() > 32768
				for {
					due := b.Due(b.now, 1000, all)
					if len(due.Items) == 0 {
						break
					}
					b.Applied(due.Items, answersTo(due.Items), b.now)
				}
				acks = b.Acks(acks[:0])
			}
			tb.ReportMetric(float64(tb.N)/tb.Elapsed().Seconds(), "events/s")
		})
	}
}

var notNeeded = Result{Outcome: sessionv1.ExtendTTLResponse_NOT_NEEDED}

func answersTo(items []Item) []Result {
	out := make([]Result, len(items))
	for i := range out {
		out[i] = notNeeded
	}
	return out
}

// BenchmarkMemory is not about time: it reports the bytes of a session that is
// tracked, all included, and of one with activity that waits.
func BenchmarkMemory(tb *testing.B) {
	const sessions = 1_000_000
	for tb.Loop() {
		before := heapBytes()
		b := newBench(tb, func(c *Config) { c.MaxTracked = 1 << 21 })
		fill(b, sessions)
		b.free = nil
		idle := heapBytes()
		tb.ReportMetric(float64(idle-before)/sessions, "B/idle")
		for i := range sessions {
			e := b.entry(int32(i%64), id(i), "command:run", b.now)
			e.SessionId = id(i)
			b.Observe([]*sessionv1.FeedEntry{e}, b.now)
		}
		tb.ReportMetric(float64(heapBytes()-idle)/sessions, "B/waiting")
		runtime.KeepAlive(b)
	}
}

func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
