package storage

import (
	"errors"
	"fmt"
)

// Sentinel errors of the contract. They know nothing of gRPC; the server maps
// each to one status. Test with errors.Is.
var (
	// ErrNotFound: there is no such session, policy or entry, and the store is
	// sure of it.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the given revision is not the current one.
	ErrConflict = errors.New("revision conflict")
	// ErrEnded: the session was ended, or its deadline has passed.
	ErrEnded = errors.New("session is over")
	// ErrUnavailable: the backend cannot answer now; whether a write was
	// applied is unknown. Trying again with the same ids is safe.
	ErrUnavailable = errors.New("store unavailable")
	// ErrPolicyUnknown comes with ErrUnavailable: what a project's policy is cannot be
	// asked for, and is not remembered.
	ErrPolicyUnknown = errors.New("the policy of the project is not known")
	// ErrPartly comes with ErrUnavailable from what is about all shards: some
	// answer, and their sessions are served.
	ErrPartly = errors.New("a part of the store cannot answer")
	// ErrExhausted: a limit of the store is reached.
	ErrExhausted = errors.New("limit reached")
	// ErrDisk comes with ErrUnavailable: the disk that the backend keeps its data on is
	// full or cannot be written.
	ErrDisk = errors.New("the data directory cannot be written")
	// ErrJournal comes with ErrUnavailable: the write could have been accepted for
	// later, but the journal is full or cannot be written.
	ErrJournal = errors.New("the journal cannot take writes")
	// ErrDeadLetters comes with ErrJournal: the journal is full, and stays so until an
	// operator retries or drops dead letters.
	ErrDeadLetters = errors.New("the dead-letter queue is full")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store closed")
)

// InvalidError says which input is wrong. It is for what only the store can
// judge: cursors, page tokens and ids; all else is validated before.
type InvalidError struct {
	// Field is the JSON path in the request, such as "pageToken".
	Field string
	// Value is the offending value, possibly shortened.
	Value string
	// Want says what was expected.
	Want string
}

// Error names field, value and expectation.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s: got %q, want %s", e.Field, e.Value, e.Want)
}
