package explain

import (
	"fmt"
	"testing"
)

func TestKeepsTheLastDecisions(t *testing.T) {
	l := NewLog(2)
	for i := range int64(20) {
		l.Add("a", Decision{Time: i})
	}
	got := l.Last("a")
	if len(got) != PerSession {
		t.Fatalf("kept %d decisions, want %d", len(got), PerSession)
	}
	for i, d := range got {
		if want := int64(19 - i); d.Time != want {
			t.Errorf("decision %d is of time %d, want %d", i, d.Time, want)
		}
	}
}

func TestDropsTheSessionDecidedLongestAgo(t *testing.T) {
	l := NewLog(3)
	for i := range 3 {
		l.Add(fmt.Sprint(i), Decision{})
	}
	l.Add("0", Decision{})
	l.Add("3", Decision{})
	if l.Last("1") != nil || len(l.Last("0")) != 2 || l.Len() != 3 {
		t.Errorf("1: %v, 0: %v, %d sessions; want 1 gone and 3 kept", l.Last("1"), l.Last("0"), l.Len())
	}
	l.Forget("0")
	l.Forget("unknown")
	if l.Last("0") != nil || l.Len() != 2 {
		t.Error("a forgotten session is still there")
	}
}
