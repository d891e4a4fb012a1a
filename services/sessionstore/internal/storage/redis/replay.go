package redis

import (
	"context"
	"fmt"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Replay cannot yet apply anything.
func (s *Store) Replay(context.Context, storage.Write) error {
	return fmt.Errorf("%w: Redis takes no replayed writes yet", storage.ErrUnavailable)
}

// Hold cannot yet hold anything.
func (s *Store) Hold(context.Context, string, time.Time) error {
	return fmt.Errorf("%w: Redis takes no holds yet", storage.ErrUnavailable)
}
