package server_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// TestUnavailableSaysWhy: what an operator can mend is named, without the cause,
// which may have paths in it.
func TestUnavailableSaysWhy(t *testing.T) {
	cause := errors.New("write /data/seg-1: no space left on device")
	for want, err := range map[string]error{
		"the store cannot answer now; try again":   cause,
		"its journal is full or cannot be written": fmt.Errorf("%w: %w", storage.ErrJournal, cause),
		"retry or drop these":                      fmt.Errorf("%w: %w: %w", storage.ErrJournal, storage.ErrDeadLetters, cause),
		"the disk of its data directory is full":   fmt.Errorf("%w: %w", storage.ErrDisk, cause),
		"does not know the project's policy":       fmt.Errorf("%w: %w", storage.ErrPolicyUnknown, cause),
	} {
		st := status.Convert(server.ToStatus(fmt.Errorf("%w: %w", storage.ErrUnavailable, err)))
		if st.Code() != codes.Unavailable || !strings.Contains(st.Message(), want) || strings.Contains(st.Message(), "/data") {
			t.Errorf("%v: answered %v, want %q", err, st, want)
		}
	}
}
