package redistest

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServerLivesDiesAndComesBack(t *testing.T) {
	s := Start(t)
	ping := func() bool {
		answer, err := s.Ask(t.Context(), "PING")
		return err == nil && strings.HasPrefix(answer, "+PONG")
	}
	if !ping() {
		t.Fatal("a fresh server does not answer")
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if ping() {
		t.Fatal("a killed server answers")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if ping() {
		t.Fatal("a paused server answers")
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if !ping() {
		t.Fatal("a resumed server does not answer")
	}
}
