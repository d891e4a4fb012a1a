package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
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
	return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
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

// recover opens the log and applies what is in it.
func (s *Store) recover() error {
	shards := 0
	log, err := wal.Open(wal.Options{Dir: s.opts.DataDir, Create: s.opts.create}, func(record []byte) error {
		return eachEffect(record, func(kind byte, f fields) error {
			if kind == effectMeta {
				shards = int(f.num(1))
				if shards != len(s.shards) {
					return fmt.Errorf("the data directory was made with %d shards, not %d", shards, len(s.shards))
				}
				return nil
			}
			return s.apply(kind, f)
		})
	})
	if err != nil {
		return fmt.Errorf("data directory %s: %w", s.opts.DataDir, err)
	}
	if cut := log.Cut(); cut > 0 {
		s.opts.Log.Warn("cut an unfinished write off the log", slog.Int64("bytes", cut))
	}
	s.log = log
	for _, sh := range s.shards {
		// What had been dropped from the feeds is still in the log.
		sh.feed.trim(s.feedHorizon(s.now()))
	}
	if shards == 0 {
		tx := &txn{store: s, unlock: func() {}}
		tx.add(effectMeta, number(nil, 1, int64(len(s.shards))))
		return s.commit(context.Background(), tx)
	}
	return nil
}

// apply makes an effect true.
func (s *Store) apply(kind byte, f fields) error {
	switch kind {
	case effectPut, effectHot:
		return s.applySession(kind == effectPut, f)
	case effectRemove:
		if sh := s.shardOf(f.text(1)); sh != nil && sh.sessions[f.text(1)] != nil {
			sh.remove(sh.sessions[f.text(1)])
		}
		return nil
	case effectEvent:
		return s.applyEvent(f)
	case effectLogAt:
		return s.applyLogAt(f)
	case effectHistory:
		return s.applyHistory(f)
	case effectHold:
		s.holds.set(f.text(1), f.num(2))
		return nil
	case effectGone:
		if sh := s.shardOf(f.text(1)); sh != nil {
			sh.exhume(f.text(1))
			if until := f.num(2); until != 0 {
				sh.bury(f.text(1), until)
			}
		}
		return nil
	case effectFeed:
		e := &sessionv1.FeedEntry{}
		if err := proto.Unmarshal(f.bytes(1), e); err != nil {
			return err
		}
		at, err := storage.ParseCursor("feed", e.GetCursor())
		sh := s.at(int64(e.GetShard()))
		if err != nil || sh == nil {
			return errors.Join(err, fmt.Errorf("feed entry of shard %d", e.GetShard()))
		}
		if at.Compare(sh.feed.last) > 0 {
			sh.feed.put(at, e)
		}
		return nil
	case effectAcked, effectFeedAt, effectLate:
		sh := s.at(f.num(2))
		at, err := storage.ParseCursor("acked", f.text(3))
		if err != nil || sh == nil {
			return errors.Join(err, fmt.Errorf("cursor of shard %d", f.num(2)))
		}
		switch old, ok := sh.feed.acked[f.text(1)]; {
		case kind == effectLate:
			sh.feed.late = late{from: f.num(4), to: at}
		case kind == effectFeedAt && at.Compare(sh.feed.last) > 0:
			sh.feed.last = at
		case kind == effectAcked && (!ok || at.Compare(old) > 0):
			sh.feed.acked[f.text(1)] = at
		}
		return nil
	case effectPolicy:
		p := &sessionv1.ProjectPolicy{}
		if err := proto.Unmarshal(f.bytes(1), p); err != nil {
			return err
		}
		if p.GetPolicy() == nil {
			s.policies.tree.Delete(p)
		} else {
			s.policies.tree.ReplaceOrInsert(p)
		}
		return nil
	default:
		return fmt.Errorf("unknown effect %d: written by a newer version", kind)
	}
}

func (s *Store) at(shard int64) *shard {
	if shard < 0 || shard >= int64(len(s.shards)) {
		return nil
	}
	return s.shards[shard]
}

func (s *Store) applySession(whole bool, f fields) error {
	sh := s.shardOf(f.text(fID))
	if sh == nil {
		return fmt.Errorf("session id %q", f.text(fID))
	}
	x := sh.sessions[f.text(fID)]
	if x == nil && !whole {
		return nil // removed later; its removal is in the snapshot already
	}
	if x != nil {
		sh.delist(x)
	} else {
		x = &session{}
	}
	if whole {
		v := &sessionv1.Session{}
		if err := proto.Unmarshal(f.bytes(fSession), v); err != nil {
			return err
		}
		x.view, x.request, x.writes = v, f.text(fRequest), nil
		for _, w := range f.all(fWrites) {
			x.writes = append(x.writes, string(w))
		}
		x.terms = lifetime.NewTerms(lifetime.Millis(v.GetCreateTime()), v.GetTtlPolicy())
	}
	x.state = lifetime.State{
		Expire: f.num(fExpire), Count: int32(f.num(fCount)), LastActivity: f.num(fActivity),
		LastCause: f.num(fCause), Forgotten: f.num(fForgotten), Over: f.num(fOver) != 0,
	}
	for _, raw := range f.all(fCauses) {
		c, err := parseFields(raw)
		if err != nil {
			return err
		}
		x.state.Causes = append(x.state.Causes, lifetime.Cause{EventID: c.text(1), Time: c.num(2)})
	}
	x.warned, x.purgeAt = f.num(fWarned), f.num(fPurge)
	x.over = sessionv1.Session_Phase(f.num(fOver))
	x.refresh(s.now(), func(v *sessionv1.Session) {
		v.Revision = f.num(fRevision)
		v.UpdateTime = lifetime.Time(f.num(fUpdated))
		v.EndTime, v.EndReason = nil, f.text(fReason)
		if f.has(fEnded) {
			v.EndTime = lifetime.Time(f.num(fEnded))
		}
	})
	sh.enlist(x)
	return nil
}

func (s *Store) applyEvent(f fields) error {
	sh := s.shardOf(f.text(1))
	if sh == nil || sh.sessions[f.text(1)] == nil {
		return nil
	}
	e := &sessionv1.Event{}
	if err := proto.Unmarshal(f.bytes(2), e); err != nil {
		return err
	}
	at, err := storage.ParseCursor("event", e.GetCursor())
	if err != nil {
		return err
	}
	if l := &sh.sessions[f.text(1)].log; at.Compare(l.last) > 0 {
		l.put(at, e, s.opts.MaxEvents)
	}
	return nil
}

func (s *Store) applyLogAt(f fields) error {
	sh := s.shardOf(f.text(1))
	if sh == nil || sh.sessions[f.text(1)] == nil {
		return nil
	}
	at, err := storage.ParseCursor("trimmed", f.text(2))
	if err != nil {
		return err
	}
	l := &sh.sessions[f.text(1)].log
	if at.Compare(l.trimmed) > 0 {
		l.trimmed = at
	}
	if at.Compare(l.last) > 0 {
		l.last = at
	}
	return nil
}

// maybeSnapshot starts a snapshot when the log has grown enough; never two.
func (s *Store) maybeSnapshot() {
	if s.log == nil || s.log.Size() < s.opts.SnapshotBytes || !s.snapshoting.CompareAndSwap(false, true) {
		return
	}
	s.snapshots.Go(func() {
		defer s.snapshoting.Store(false)
		if err := s.Snapshot(); err != nil {
			s.opts.Log.Error("snapshot failed; the log goes on growing", slog.Any("error", err))
		}
	})
}

// snapshotRecord is about how many bytes of effects go into one record of a
// snapshot. A session with a long log, or a feed that a group left lying, can
// be larger than the log's largest record.
const snapshotRecord = 1 << 20

// Snapshot replaces the log by what is true now. Changes go on meanwhile: they
// are in the log after the snapshot, and applying them again is harmless.
func (s *Store) Snapshot() error {
	return s.log.Snapshot(func(emit func(record []byte) error) error {
		tx := &txn{store: s}
		flush := func() error {
			for buf := tx.buf; len(buf) > 0; {
				n := 0
				for n < len(buf) && n < snapshotRecord {
					n += effectSize(buf[n:])
				}
				if err := emit(buf[:n]); err != nil {
					return err
				}
				buf = buf[n:]
			}
			tx.buf = tx.buf[:0]
			return nil
		}
		tx.add(effectMeta, number(nil, 1, int64(len(s.shards))))
		s.policies.mu.Lock()
		s.policies.tree.Ascend(func(p *sessionv1.ProjectPolicy) bool {
			tx.policy(p)
			return true
		})
		s.policies.mu.Unlock()
		s.holds.mu.Lock()
		for holder, from := range s.holds.from {
			tx.hold(holder, from)
		}
		s.holds.mu.Unlock()
		if err := flush(); err != nil {
			return err
		}
		for _, sh := range s.shards {
			if err := s.snapshotShard(tx, sh, flush); err != nil {
				return err
			}
		}
		// The snapshot may hold one half of a change whose record still waits for
		// the disk: it must not count before that record does.
		return s.settle(context.Background(), s.lastWrite())
	})
}

// snapshotShard emits a shard session by session, so that its lock is never
// held while the disk is written.
func (s *Store) snapshotShard(tx *txn, sh *shard, flush func() error) error {
	tx.shard = sh
	sh.mu.Lock()
	ids := make([]string, 0, len(sh.sessions))
	for id := range sh.sessions {
		ids = append(ids, id)
	}
	sh.mu.Unlock()
	for _, id := range ids {
		sh.mu.Lock()
		if x := sh.sessions[id]; x != nil {
			tx.put(x)
			for _, e := range x.log.events {
				tx.event(x, e.event)
			}
			tx.wholeHistory(x)
			tx.logAt(x)
		}
		sh.mu.Unlock()
		if err := flush(); err != nil {
			return err
		}
	}
	sh.mu.Lock()
	for _, e := range sh.feed.entries {
		tx.feed(e.entry)
	}
	tx.add(effectFeedAt, field(number(nil, 2, int64(sh.n)), 3, sh.feed.last.String()))
	for group, at := range sh.feed.acked {
		tx.acked(group, at)
	}
	tx.late(sh)
	for id, until := range sh.gone {
		tx.gone(id, until)
	}
	sh.mu.Unlock()
	return flush()
}
