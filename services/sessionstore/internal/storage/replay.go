package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Write is one change of one session that was accepted, and made durable
// elsewhere, while the backend could not answer. Exactly one of the fields
// after Cursor is set.
type Write struct {
	SessionID string
	// At is when it was accepted, with millisecond resolution.
	At time.Time
	// Cursor is the one that the caller was told for the lifecycle event that the
	// write appends to the session's log; empty for none.
	Cursor string

	Create *CreateWrite
	Update *Update
	// Earlier are updates that were accepted before Update, at most MaxWriteIDs/2 - 1,
	// each with a WriteID: they are applied with it, in order.
	Earlier []*Update
	End     *EndWrite
	Delete  bool
	// Append are events with id, type, time and origin. A Cursor says which one
	// the caller was told.
	Append []*sessionv1.Event
	// Extend is a reported activity, with its time.
	Extend *Activity
}

// CreateWrite is what Create was given.
type CreateWrite struct {
	Session    *sessionv1.Session
	RequestKey string
}

// EndWrite is what End was given.
type EndWrite struct {
	Reason string
}

// MaxWriteIDs is how many updates a session remembers by their WriteID: so many
// may come between an update whose answer was lost and its next try.
const MaxWriteIDs = 16

// NewWriteID returns a WriteID that no other update has.
func NewWriteID() string { return rand.Text() }

// Updates returns every update of a write, in order.
func (w Write) Updates() []Update {
	out := make([]Update, 0, len(w.Earlier)+1)
	for _, u := range w.Earlier {
		out = append(out, *u)
	}
	return append(out, *w.Update)
}

// Check returns an InvalidError for a write that says nothing, or more than one
// thing, or not when.
func (w Write) Check() error {
	n := 0
	for _, set := range []bool{w.Create != nil, w.Update != nil, w.End != nil, w.Delete, w.Append != nil, w.Extend != nil} {
		if set {
			n++
		}
	}
	switch {
	case n != 1:
		return &InvalidError{Field: "write", Value: strconv.Itoa(n) + " changes", Want: "one change of a session"}
	case len(w.Earlier) > 0 && w.Update == nil || len(w.Earlier) >= MaxWriteIDs/2:
		return &InvalidError{Field: "earlier", Value: strconv.Itoa(len(w.Earlier)) + " updates", Want: "fewer, and an update"}
	case w.At.UnixMilli() <= 0:
		return &InvalidError{Field: "at", Value: w.At.String(), Want: "when the write was accepted"}
	case w.Create != nil && w.Create.Session.GetId() != w.SessionID:
		return &InvalidError{Field: "id", Value: Shorten(w.SessionID), Want: "the id of the session to create"}
	}
	return nil
}

// Outcome turns the outcome of a replayed activity into what Replay returns:
// refusals that leave the session alone are no error.
func (w Write) Outcome(o sessionv1.ExtendTTLResponse_Outcome) error {
	switch o {
	case sessionv1.ExtendTTLResponse_NOT_FOUND:
		return ErrNotFound
	case sessionv1.ExtendTTLResponse_ENDED:
		return ErrEnded
	default:
		return nil
	}
}

// Undecided turns what kept a call from being made, or its caller from waiting,
// into ErrUnavailable as well: who replays must not take it for a refusal.
func Undecided(err error) error {
	if errors.Is(err, ErrClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// HoldLife returns how long a hold counts that its holder does not move: longer than
// an outage lasts, as a replica that is cut off cannot be told from one that is gone
// for good.
func HoldLife(settleMax time.Duration) time.Duration { return max(24*time.Hour, 2*settleMax) }

// Replay applies writes that were accepted while the backend could not answer.
type Replay interface {
	// Replay must apply a write as of the time when it was accepted: whether the
	// session is live is judged by its deadline and w.At, not by the clock, as
	// long as it was not swept. The same write again, or one that was applied
	// before by the method it stands for, must change nothing and return nil.
	// Nothing may be revived that has ended or was deleted, for as long as
	// retention after that. It must return ErrUnavailable when it cannot tell
	// whether the write was applied, or did not get to it (then with ErrClosed or
	// the context's error as well); any other error says that it was not, and
	// never will be as it is:
	//
	//   - Create must store the session with the times that it carries, even when
	//     its deadline has passed. Where an attempt of the same creation has stored
	//     it with other times, and it is live, its times must be moved by as much as
	//     its create_time is off. A request key that stands for another session by
	//     now stays with that one.
	//   - Update must return ErrNotFound, ErrEnded and ErrConflict as Update does,
	//     and set update_time to w.At. Its WriteID is what makes it the same again.
	//     The updates in Earlier are applied before it, each as one of its own. Where
	//     one is refused, those before it may have been applied.
	//   - End must set end_time to w.At, and change nothing where the session is
	//     over or w.At is not before its deadline. It must return ErrNotFound.
	//   - Delete must not mind that the session is not there.
	//   - Append must give an event the cursor it carries where that is after the
	//     last one of the log, and else the next. It must return ErrNotFound and
	//     ErrEnded. Its entries in the feed are new ones, behind those that are
	//     there; Sweep must wait for ActivityGroup as if they had been appended at
	//     w.At.
	//   - Extend must do what TTL.Extend does, and return ErrNotFound and ErrEnded
	//     for these outcomes.
	//
	// A lifecycle event that this appends to the session's log must carry the time
	// w.At, and the cursor w.Cursor (that of w.At where it has none) where that is
	// after the log's last one, and else the next.
	Replay(ctx context.Context, w Write) error

	// Hold must make Sweep, from whichever replica, leave alone what is due only
	// at from or later: sessions whose deadline is not before it are not expired,
	// and warnings that are due (deadline - extend_below) at from or later are
	// not given; but nothing for longer than settle_max after it was due. By it a
	// holder says that it has nothing from before that time which is still to be
	// replayed. The earliest hold counts. A later call of the same holder takes
	// the place of the one before, but a step forward of less than a second may
	// be left to a later call; the zero time gives the hold up. However far back
	// its time is, a hold counts: for each session, until settle_max after that
	// session's own deadline. One further back than HoldLife is that of a holder
	// that will not come back: it counts for nothing, and may be forgotten. Holds
	// must be remembered across restarts where the data is.
	Hold(ctx context.Context, holder string, from time.Time) error
}
