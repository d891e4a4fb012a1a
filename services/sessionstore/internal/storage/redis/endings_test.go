package redis

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// TestEndingsAreBounded: each kind keeps the latest, within some for how they are
// spread, and a wave of one kind leaves the others.
func TestEndingsAreBounded(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	e := newEndings()
	first := sessionid.New(1)
	e.remember(first, ending{kind: endingEnded, at: 1})
	var last string
	for i := range 3 * endingsMost {
		last = sessionid.New(i % 64)
		e.remember(last, ending{kind: endingExpired, at: int64(i)})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := e.n.Load(); n < endingsMost*9/10 || n > endingsMost+endingStripes+1 {
		t.Errorf("%d are remembered, want about %d", n, endingsMost)
	}
	if x, ok := e.get(first); !ok || x.kind != endingEnded {
		t.Error("an end was displaced by expiries")
	}
	if _, ok := e.get(last); !ok {
		t.Error("the latest is not there")
	}
	each := int64(after.HeapAlloc-before.HeapAlloc) / e.n.Load()
	t.Logf("%d B for each", each)
	if each > 400 {
		t.Errorf("%d B for each", each)
	}
	runtime.KeepAlive(e)
}

func TestEndingsOfOneSession(t *testing.T) {
	e := newEndings()
	e.remember("a", ending{kind: endingEnded, at: 1, reason: "first"})
	e.remember("a", ending{kind: endingEnded, at: 2, reason: "second"})
	if x, _ := e.get("a"); x.reason != "first" {
		t.Errorf("%+v", x)
	}
	e.remember("a", ending{kind: endingDeleted, at: 3})
	e.remember("a", ending{kind: endingExpired, at: 4})
	if x, _ := e.get("a"); x.err() != storage.ErrNotFound || e.n.Load() != 1 { //nolint:errorlint // a bare sentinel
		t.Errorf("%+v of %d", x, e.n.Load())
	}
	e.remember("", ending{})
	e.remember("b", ending{kind: endingEnded, at: 50, seen: 40})
	e.remember("c", ending{kind: endingExpired, at: 50, seen: 40})
	e.remember("d", ending{kind: endingEnded, at: 5, seen: 6})
	if got := e.since(50); len(got) != 2 || got["b"].at != 50 || got["a"].at != 3 { // of a nothing is known
		t.Errorf("%+v", got)
	}
}

func TestGaps(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "x": "", "5-3": "", "1-2": "1-2", "1-2 x 3-": "1-2", "7-9 1-2": "1-2 7-9", "1-5 3-9": "1-9", "1-5 5-9 20-30": "1-9 20-30",
	} {
		if got := formatGaps(mergeGaps(nil, parseGaps(text))); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	var many []gap
	for i := range int64(40) {
		many = mergeGaps(many, []gap{{10 * i, 10*i + 1}})
	}
	if len(many) != gapsMost || many[gapsMost-1] != (gap{390, 391}) {
		t.Errorf("%d gaps, the last %v", len(many), many[len(many)-1])
	}
	at := func(ms int64, seq uint64) storage.Cursor { return storage.Cursor{Millis: ms, Seq: seq} }
	for c, want := range map[storage.Cursor]bool{at(389, 9): false, at(390, 0): true, at(391, 5): true, at(392, 0): false} {
		if _, got := findGap(many, c); got != want {
			t.Errorf("%v: %v", c, got)
		}
	}
	for _, c := range []struct {
		field any
		after storage.Cursor
		next  string
		want  bool
	}{
		{nil, at(1, 0), "9-0", false},
		{"5", at(1, 0), "5-9", false},
		{"5", at(5, 9), "6-0", true},
		{"5", at(6, 0), "9-0", false},
		{"2 5", at(3, 0), "4-0", false},
		{"2 5", at(3, 0), "9-0", true},
		{"x", at(0, 0), "9-0", false},
	} {
		if got := crossesGap(c.field, c.after, c.next); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestRecentKeepsTheLatest: of entries that have made room, the last of each session is
// remembered, for a bounded number of sessions.
func TestRecentKeepsTheLatest(t *testing.T) {
	var r recent
	const made = recentMost + recentSessions + 10
	for i := range made {
		r.add(i%4, int64(i), fmt.Sprint(i))
	}
	got := r.between(-1, gap{0, made})
	if n := len(got); n < recentMost+recentSessions/2 || n > recentMost+recentSessions || got["9"] || !got[fmt.Sprint(recentSessions)] {
		t.Errorf("%d sessions", n)
	}
	r = recent{}
	for i := range recentMost + 10 {
		r.add(i%4, int64(i), fmt.Sprint(i))
	}
	var ids []string
	for id := range r.between(1, gap{recentMost, recentMost + 5}) {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if want := []string{fmt.Sprint(recentMost + 1), fmt.Sprint(recentMost + 5)}; !slices.Equal(ids, want) {
		t.Errorf("%v, want %v", ids, want)
	}
}

func BenchmarkEndings(b *testing.B) {
	e := newEndings()
	ids := make([]string, 1024)
	for i := range ids {
		ids[i] = sessionid.New(i % 64)
	}
	for range endingsMost {
		e.remember(sessionid.New(1), ending{kind: endingEnded})
	}
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, ended := e.get(ids[i%len(ids)]); ended {
				b.Error("never ended")
			}
		}
	})
}
