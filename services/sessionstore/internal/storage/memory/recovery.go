package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/wal"
)

// recover opens the log and applies what is in it.
func (s *Store) recover() error {
	shards := 0
	log, err := wal.Open(wal.Options{Dir: s.opts.DataDir, Create: s.opts.create, AwaitRoom: true}, func(record []byte) error {
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
	if err := log.Err(); err != nil {
		s.opts.Log.Error("the data directory cannot be written: reads only, until it can be", slog.Any("error", err))
	}
	s.log = log
	for _, sh := range s.shards {
		// What had been dropped from the feeds is still in the log.
		sh.feed.trim(s.feedHorizon(s.now()))
	}
	if shards == 0 {
		tx := &txn{store: s, unlock: func() {}}
		tx.add(effectMeta, number(nil, 1, int64(len(s.shards))))
		if err := s.commit(context.Background(), tx); err != nil {
			return errors.Join(err, log.Close())
		}
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
