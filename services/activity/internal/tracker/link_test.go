package tracker

import (
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

func FuzzParseLink(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, s string) {
		l := parseLink(s)
		if l == (Link{}) {
			return
		}
		again := fmt.Sprintf("%s-%s-%s-%02x", s[:2], hex.EncodeToString(l.TraceID[:]), hex.EncodeToString(l.SpanID[:]), l.Flags)
		if again != s {
			t.Errorf("%q was read as %q", s, again)
		}
	})
}

func FuzzParsePlace(f *testing.F) {
	f.Add("1763980800000-0")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePlace(s)
		if ok && (p.after(p) || !(place{p.millis, p.seq}).after(place{}) && p != place{}) {
			t.Errorf("%q: %+v", s, p)
		}
	})
}

// The tracker's methods may be called from several goroutines: this is for the
// race detector.
func TestConcurrentUse(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxTracked, c.Flush = 8, time.Millisecond })
	b.live("s0")
	var batches [][]*sessionv1.FeedEntry
	for i := range 200 {
		batches = append(batches, []*sessionv1.FeedEntry{b.entry(0, fmt.Sprint("s", i%10), "input:text", base+int64(i))})
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for now := base; ; now++ {
				select {
				case <-done:
					return
				default:
				}
				var answers []Answer
				for _, id := range b.Unresolved(now, 3) {
					answers = append(answers, Answer{SessionID: id, Session: aSession(id, base)})
				}
				b.Resolve(answers, now, now)
				due := b.Due(now, 3, true)
				b.Applied(due.Items, answersTo(due.Items), now)
				b.Acks(nil)
				b.Stats()
				b.Waiting("s1")
				b.Sweep(now, 1)
			}
		})
	}
	for i, entries := range batches {
		b.Observe(entries, base+int64(i))
	}
	close(done)
	wg.Wait()
}
