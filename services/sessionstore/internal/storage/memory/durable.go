package memory

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

// The log holds effects, not calls: each says what is true after a change, with
// absolute times. Applying one twice changes nothing, which is what allows a
// snapshot to be taken while changes go on.
//
// A record is a sequence of effects that take place together:
// kind (1 byte), length (uvarint), body (fields in protobuf's wire format).
const (
	effectMeta   = 1 // the store's number of shards
	effectPut    = 2 // a session as a whole
	effectHot    = 3 // what changes of a session without its data
	effectRemove = 4 // a session is gone
	effectEvent  = 5 // an event in a session's log
	effectFeed   = 6 // an entry of a shard's feed
	effectAcked  = 7 // how far a group has acknowledged a shard
	effectPolicy = 8 // a project's policy, absent when deleted
	effectFeedAt = 9 // the last cursor a shard's feed gave out
	effectLogAt  = 10
	// effectHistory is the latest decision about a session and its counts.
	effectHistory = 11
	effectHold    = 12 // from when on a holder holds the sweep, 0 for not at all
	effectGone    = 13 // a deleted session must not come back until a time
	effectLate    = 14 // a shard's feed has entries that were accepted earlier
)

// txn is one change: it collects effects while a lock is held.
type txn struct {
	store  *Store
	shard  *shard
	unlock func()
	buf    []byte
}

// begin starts a change of a shard, which must be locked; write unlocks it.
func (s *Store) begin(sh *shard) *txn { return &txn{store: s, shard: sh, unlock: sh.mu.Unlock} }

func (s *Store) beginPolicies() *txn { return &txn{store: s, unlock: s.policies.mu.Unlock} }

// write puts the change into the log and unlocks. The change is durable once
// the returned sequence number has settled.
func (s *Store) write(tx *txn) (uint64, error) {
	defer tx.unlock()
	if len(tx.buf) == 0 {
		return 0, nil
	}
	seq, err := s.log.Append(tx.buf)
	return seq, unavailable(err)
}

// commit writes the change and waits until it is durable.
func (s *Store) commit(ctx context.Context, tx *txn) error { return s.commitAfter(ctx, tx, 0) }

// commitAfter is commit for an answer that also rests on earlier writes.
func (s *Store) commitAfter(ctx context.Context, tx *txn, earlier uint64) error {
	seq, err := s.write(tx)
	if err != nil {
		return err
	}
	return s.settle(ctx, max(seq, earlier))
}

// settle waits until the log is durable up to a sequence number.
func (s *Store) settle(ctx context.Context, seq uint64) error {
	if s.log == nil || seq == 0 {
		return nil
	}
	err := s.log.Wait(ctx, seq)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return unavailable(err)
}

// lastWrite is the sequence number of the latest write.
func (s *Store) lastWrite() uint64 {
	if s.log == nil {
		return 0
	}
	return s.log.Appended()
}

// writable is usable for calls that change something: once the log has failed
// nothing may change any more.
func (s *Store) writable(ctx context.Context) error {
	if err := s.usable(ctx); err != nil || s.log == nil {
		return err
	}
	return unavailable(s.log.Err())
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, wal.ErrClosed) {
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w: %w", storage.ErrUnavailable, storage.ErrDisk, err)
}

// Fields of a session's effects.
const (
	fID = iota + 1
	fSession
	fRequest
	fExpire
	fCount
	fActivity
	fCause
	fForgotten
	fCauses
	fWarned
	fOver
	fPurge
	fRevision
	fUpdated
	fEnded
	fReason
	fWrites
)

func encodeSession(x *session, whole bool) []byte {
	b := field(nil, fID, x.view.GetId())
	if whole {
		b = message(b, fSession, x.view)
		b = field(b, fRequest, x.request)
		for _, w := range x.writes {
			b = field(b, fWrites, w)
		}
	}
	b = number(b, fExpire, x.state.Expire)
	b = number(b, fCount, int64(x.state.Count))
	b = number(b, fActivity, x.state.LastActivity)
	b = number(b, fCause, x.state.LastCause)
	b = number(b, fForgotten, x.state.Forgotten)
	for _, c := range x.state.Causes {
		b = protowire.AppendTag(b, fCauses, protowire.BytesType)
		b = protowire.AppendBytes(b, number(field(nil, 1, c.EventID), 2, c.Time))
	}
	b = number(b, fWarned, x.warned)
	b = number(b, fOver, int64(x.over))
	b = number(b, fPurge, x.purgeAt)
	b = number(b, fRevision, x.view.GetRevision())
	b = number(b, fUpdated, lifetime.Millis(x.view.GetUpdateTime()))
	if x.view.GetEndTime() != nil {
		b = number(b, fEnded, lifetime.Millis(x.view.GetEndTime()))
	}
	return field(b, fReason, x.view.GetEndReason())
}
