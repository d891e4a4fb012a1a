package memory

import (
	"context"
	"log/slog"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

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
