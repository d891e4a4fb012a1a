// Package redistest starts private Redis servers for tests: real processes on
// free ports, each with a directory of its own, ended with the test.
package redistest

import (
	"testing"

	"github.com/livinguniverse/stoker/pkg/redisproc"
)

// Server is a running redis-server.
type Server = redisproc.Server

// Start starts a server without persistence for a test and its subtests.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := redisproc.Launch(t.Context(), t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}
