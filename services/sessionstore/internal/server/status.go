package server

import (
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/resilience"
	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// retryAfter is what callers are told to wait when the store is unavailable.
const retryAfter = time.Second

// ToStatus is the one mapping of storage errors to statuses. It returns nil
// for an error that is not storage's.
func ToStatus(err error) error {
	var invalid *storage.InvalidError
	switch {
	case errors.As(err, &invalid):
		return rpc.FieldViolation(invalid.Field, invalid.Value, invalid.Want)
	case errors.Is(err, errNoPolicy):
		return rpc.Error(codes.NotFound, rpc.ReasonPolicyNotFound, "the project has no policy of its own", nil, 0)
	case errors.Is(err, storage.ErrNotFound):
		return rpc.Error(codes.NotFound, rpc.ReasonSessionNotFound, "there is no such session", nil, 0)
	case errors.Is(err, storage.ErrConflict):
		return rpc.Error(codes.Aborted, rpc.ReasonConflict, "etag: the session has changed since; read it again", nil, 0)
	case errors.Is(err, storage.ErrEnded):
		return rpc.Error(codes.FailedPrecondition, rpc.ReasonSessionOver, "the session has ended or expired", nil, 0)
	case errors.Is(err, storage.ErrExhausted):
		return rpc.Error(codes.ResourceExhausted, rpc.ReasonLimitReached, "a limit of the store is reached", nil, wait(err))
	case errors.Is(err, storage.ErrPolicyUnknown):
		return rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "project: the store cannot answer now, and this replica does not know the project's policy; try again, or give a ttlPolicy with every field set", nil, wait(err))
	case errors.Is(err, storage.ErrDisk):
		return rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "the store answers reads only: the disk of its data directory is full or cannot be written", nil, wait(err))
	case errors.Is(err, storage.ErrDeadLetters):
		return rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "the store cannot answer now, and its journal is full of writes behind dead letters: an operator must retry or drop these", nil, wait(err))
	case errors.Is(err, storage.ErrJournal):
		return rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "the store cannot answer now, and its journal is full or cannot be written; try again", nil, wait(err))
	case errors.Is(err, storage.ErrUnavailable), errors.Is(err, storage.ErrClosed):
		return rpc.Error(codes.Unavailable, rpc.ReasonStoreUnavailable, "the store cannot answer now; try again", nil, wait(err))
	default:
		return nil
	}
}

// wait is what a caller is told to wait: until an open breaker lets probes
// through, where that is why.
func wait(err error) time.Duration {
	var open *resilience.OpenError
	var shed *resilience.ShedError
	switch {
	case errors.As(err, &open):
		return open.RetryAfter
	case errors.As(err, &shed):
		return shed.RetryAfter
	default:
		return retryAfter
	}
}

// errNoPolicy is storage.ErrNotFound where a policy was asked for.
var errNoPolicy = errors.New("no policy")

func policyError(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return errNoPolicy
	}
	return err
}
