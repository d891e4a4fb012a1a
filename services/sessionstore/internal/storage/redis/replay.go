package redis

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// asOf is the time as of when a script makes a change, in Unix milliseconds, and
// the cursor that the caller was told for the lifecycle event of it; empty for
// none.
type asOf struct {
	ms   int64
	told string
}

// present is the time of Redis.
var present asOf

// arg spells it for a script.
func (a asOf) arg() any {
	switch {
	case a.ms == 0:
		return ""
	case a.told == "":
		return a.ms
	default:
		return strconv.FormatInt(a.ms, 10) + " " + a.told
	}
}

// told is a cursor that the caller was told, empty for none.
func told(cursor string) string {
	c, err := storage.ParseCursor("cursor", cursor)
	if err != nil || c == (storage.Cursor{}) {
		return ""
	}
	return c.String()
}

// Replay applies a write as of the time when it was accepted.
func (s *Store) Replay(ctx context.Context, w storage.Write) error {
	return storage.Undecided(s.replay(ctx, w))
}

func (s *Store) replay(ctx context.Context, w storage.Write) error {
	if err := s.usable(ctx); err != nil {
		// Also where this Redis cannot be used: that is no refusal of the write.
		return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	if err := w.Check(); err != nil {
		return err
	}
	at := asOf{w.At.UnixMilli(), told(w.Cursor)}
	sh := s.shardOf(w.SessionID)
	switch {
	case sh == nil && w.Delete:
		return nil
	case sh == nil && w.Create != nil:
		return &storage.InvalidError{Field: "id", Value: storage.Shorten(w.SessionID), Want: "a session id"}
	case sh == nil:
		return storage.ErrNotFound
	case w.Create != nil && s.hasEnded(w.SessionID):
		return nil // it was created before, and has ended since
	case w.Create != nil:
		_, err := s.create(ctx, sh, w.Create.Session, w.Create.RequestKey, at)
		return err
	case w.Update != nil:
		_, err := s.update(ctx, w.SessionID, w.Updates(), at)
		return err
	case w.End != nil:
		r, err := s.end(ctx, sh, w.SessionID, w.End.Reason, at)
		if err == nil && r.num(0) == 1 {
			s.remember(w.SessionID, endingEnded, at.ms, w.End.Reason)
		}
		return err
	case w.Delete:
		return s.remove(ctx, sh, w.SessionID, at)
	case w.Append != nil:
		_, err := s.append(ctx, sh, w.SessionID, w.Append, at)
		return err
	default:
		a := *w.Extend
		a.SessionID = w.SessionID
		if err := s.checkRevived(ctx, sh, w.SessionID); err != nil {
			return err
		}
		r, err := s.extendOne(ctx, sh, a, at)
		if err != nil {
			return err
		}
		if r.num(exOutcome) == none {
			return s.confirm(ctx, sh, storage.ErrNotFound)
		}
		return w.Outcome(sessionv1.ExtendTTLResponse_Outcome(r.num(exOutcome)))
	}
}

// holdStep is by how much a hold moves forward before it is written again.
// Sweeps wait that much longer, which is no harm, and four in five writes are
// saved. It is never more than a hundredth of settle_max.
const holdStep = time.Second

// holds are the holds that were written by this process.
type holds struct {
	mu      sync.Mutex
	written map[string]written
}

type written struct {
	from, at int64
}

// Hold makes sweeps leave alone what is due only at from or later. A hold that
// stands still says that something waits to be replayed: it is written each
// time, as a Redis that has lost it would sweep.
func (s *Store) Hold(ctx context.Context, holder string, from time.Time) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	ms, at := from.UnixMilli(), s.now()
	step := min(holdStep, s.opts.SettleMax/100).Milliseconds()
	if w, ok := s.holds.written[holder]; ok && !from.IsZero() && ms > w.from && ms-w.from < step && at >= w.at && at-w.at < step {
		return nil
	}
	delete(s.holds.written, holder) // what fails may be there on some shards
	var arg any = ms
	if from.IsZero() {
		arg = ""
	}
	calls := make([]invocation, len(s.shards))
	for i, sh := range s.shards {
		calls[i] = s.scripts.hold.on(sh, "", holder, arg)
	}
	_, errs := s.runAll(ctx, "hold", calls)
	for _, err := range errs {
		if err != nil {
			return err // mostly the same for each shard
		}
	}
	if !from.IsZero() {
		s.holds.written[holder] = written{ms, at}
	}
	return nil
}
