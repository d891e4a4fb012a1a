package redis

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestOpenSlots reads what a node says of its own slots, and of no other node's.
func TestOpenSlots(t *testing.T) {
	o := openSlots{importing: map[int64]bool{}, migrating: map[int64]bool{}}
	o.read("07c3 127.0.0.1:30004@31004 slave e7d1 0 1426238317239 4 connected\n" +
		"67ed 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922 [7-<-e7d1]\n" +
		"e7d1 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460 5470 [93->-67ed] [77-<-67ed] [x-<-67ed]\n")
	o.read("")
	o.read("e7d1 127.0.0.1:30001@31001 myself,master -\n")
	if len(o.importing) != 1 || !o.importing[77] || len(o.migrating) != 1 || !o.migrating[93] {
		t.Errorf("got %+v", o)
	}
}

// TestLooksAreFresh: a look that began before the call is not used, however many
// call at a time, and those who wait share the next one.
func TestLooksAreFresh(t *testing.T) {
	const callers = 50
	var l looks
	var made atomic.Int64
	began, release := make(chan struct{}), make(chan struct{})
	look := func() (openSlots, error) {
		if made.Add(1) == 1 {
			close(began)
			<-release
			return openSlots{}, errors.New("before")
		}
		return openSlots{importing: map[int64]bool{1: true}}, nil
	}
	var first sync.WaitGroup
	first.Go(func() { _, _ = l.fresh(look) })
	<-began
	var waiting, others sync.WaitGroup
	waiting.Add(callers)
	for range callers {
		others.Go(func() {
			waiting.Done()
			if o, err := l.fresh(look); err != nil || !o.importing[1] {
				t.Errorf("got the look of before: %+v, %v", o, err)
			}
		})
	}
	waiting.Wait()
	close(release)
	first.Wait()
	others.Wait()
	// A caller may have been slow to ask, and so need one of its own.
	if n := made.Load(); n < 2 || n > callers {
		t.Errorf("%d looks for %d callers", n, callers)
	}
}

// TestForecast: a session's last outcome is what is expected next.
func TestForecast(t *testing.T) {
	var f forecast
	if f.extends("a") {
		t.Error("expects an extension of a session that never was extended")
	}
	f.learn("a", true)
	if !f.extends("a") || f.extends("b") {
		t.Error("does not know which session was extended")
	}
	f.learn("b", false)
	f.learn("a", false)
	if f.extends("a") {
		t.Error("expects what did not come")
	}
}

// TestScriptsNameTheirKeys: every script loads, and one that names no keys, or an
// unknown kind, does not.
func TestScriptsNameTheirKeys(t *testing.T) {
	all, err := loadScripts("")
	if err != nil {
		t.Fatal(err)
	}
	for name, sc := range all.byName() {
		if len((*sc).keys) == 0 || (*sc).required == 0 {
			t.Errorf("%s declares %v, %d of them always", name, (*sc).keys, (*sc).required)
		}
	}
	sc := &script{}
	if err := sc.parseKeys("-- KEYS: session feed [request prior]\nreturn 1"); err != nil ||
		!slices.Equal(sc.keys, []keyKind{keySession, keyFeed, keyRequest, keyPrior}) || sc.required != 2 {
		t.Errorf("got %v, %d required, %v", sc.keys, sc.required, err)
	}
	for _, body := range []string{"return 1", "-- ARGV: id", "-- KEYS: session sesion"} {
		if err := new(script).parseKeys(body); err == nil {
			t.Errorf("%q is accepted", body)
		}
	}
}

// TestScriptsGetTheirParts: a script has the parts that it uses, and those that they
// use, but none that only a comment names.
func TestScriptsGetTheirParts(t *testing.T) {
	parts := splitLib("-- the beginning\n--@part a\nlocal a = 1\n\n--@part b c\nlocal function b() return a end\nlocal c\n--@part d\nlocal d = b\n")
	for body, want := range map[string]string{
		"return 1 -- not a, b or d": "", "return a": "a", "return c": "abc", "return d()": "abcd", "return b.a": "abc",
	} {
		text := usedParts(parts, body)
		for _, name := range []string{"a", "b", "c", "d"} {
			defined := strings.Contains(text, "local "+name) || strings.Contains(text, "local function "+name)
			if defined != strings.Contains(want, name) {
				t.Errorf("%s: %q is defined: %v, want the parts %q", body, name, defined, want)
			}
		}
	}
}
