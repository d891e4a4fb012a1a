package storage_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

func TestWarningBoard(t *testing.T) {
	var log bytes.Buffer
	now := time.UnixMilli(1000)
	b := storage.NewWarningBoard(slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	b.Raise(t.Context(), "eviction-policy", "a:1", "allkeys-lru")
	now = now.Add(time.Second)
	b.Raise(t.Context(), "eviction-policy", "a:1", "allkeys-lru")
	b.Raise(t.Context(), "eviction-policy", "a:1", "volatile-lru")
	b.Raise(t.Context(), "clock", "", "an hour ahead")
	b.Clear(t.Context(), "clock", "a:1") // another one
	got := b.List()
	want := []storage.Warning{
		{Code: "clock", Message: "an hour ahead", Since: now},
		{Code: "eviction-policy", Node: "a:1", Message: "volatile-lru", Since: time.UnixMilli(1000)},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	b.ClearNode(t.Context(), "a:1")
	b.Clear(t.Context(), "clock", "")
	if left := b.List(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if raised, cleared := strings.Count(log.String(), "raised"), strings.Count(log.String(), "cleared"); raised != 3 || cleared != 2 {
		t.Errorf("logged %d raised and %d cleared, want 3 and 2:\n%s", raised, cleared, log.String())
	}
}

func TestWarningBoardIsBounded(t *testing.T) {
	b := storage.NewWarningBoard(slog.New(slog.DiscardHandler), time.Now)
	for i := range 10 * storage.MaxWarnings {
		b.Raise(t.Context(), "role", fmt.Sprint(i), "a replica")
	}
	if n := len(b.List()); n != storage.MaxWarnings {
		t.Errorf("%d warnings, want %d", n, storage.MaxWarnings)
	}
}
