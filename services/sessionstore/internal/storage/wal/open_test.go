package wal

import (
	"errors"
	"testing"
)

var errNoSpace = errors.New("no space left on device")

// fullFile takes nothing.
type fullFile struct{ open *int }

func (f fullFile) Write([]byte) (int, error) { return 0, errNoSpace }
func (f fullFile) Sync() error               { return nil }

func (f fullFile) Close() error {
	*f.open--
	return nil
}

// TestOpenLeavesNothingOpen: whoever tries again and again while the disk is
// full must not run out of files, nor be locked out.
func TestOpenLeavesNothingOpen(t *testing.T) {
	dir, open := t.TempDir(), 0
	full := Options{Dir: dir, Create: func(string) (File, error) {
		open++
		return fullFile{&open}, nil
	}}
	for range 3 {
		if _, err := Open(full, func([]byte) error { return nil }); !errors.Is(err, errNoSpace) {
			t.Fatalf("got %v", err)
		}
	}
	if open != 0 {
		t.Errorf("%d files are left open", open)
	}
	l, err := Open(Options{Dir: dir}, func([]byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
