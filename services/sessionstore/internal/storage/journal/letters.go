package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// DeadLetter is an accepted write that cannot be replayed as it is.
type DeadLetter struct {
	// ID names it among those of all replicas.
	ID        string
	SessionID string
	// Operation is the RPC it came by, such as "UpdateSession".
	Operation string
	// Reason is why it could not be replayed.
	Reason   string
	Accepted time.Time
}

type letter struct {
	id     string
	write  *accepted
	reason string
}

func (l *letter) size() int64 { return l.write.size + int64(len(l.reason)) }

// letters are the dead letters, by id.
type letters struct {
	mu    sync.Mutex
	by    map[string]*letter
	bytes int64
	// retrying is held by who retries or drops one.
	retrying sync.Mutex
}

func (l *letters) init() { l.by = map[string]*letter{} }

func (s *Store) letterID(seq int64) string { return fmt.Sprintf("%s-%012d", s.holder, seq) }

// add takes a dead letter, and returns false where that would be more than most,
// or more than maxBytes in all.
func (l *letters) add(id string, a *accepted, reason string, most int, maxBytes int64) bool {
	x := &letter{id, a, reason}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by[id] != nil {
		return true
	}
	if len(l.by) >= most || len(l.by) > 0 && l.bytes+x.size() > maxBytes {
		return false
	}
	l.by[id] = x
	l.bytes += x.size()
	return true
}

// restore puts a dead letter back that is on disk, whatever the bounds are now.
func (l *letters) restore(id string, a *accepted, reason string) {
	l.add(id, a, reason, math.MaxInt, math.MaxInt64)
}

func (l *letters) has(id string) bool { return l.get(id) != nil }

func (l *letters) get(id string) *letter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[id]
}

func (l *letters) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.by[id]; x != nil {
		l.bytes -= x.size()
		delete(l.by, id)
	}
}

func (l *letters) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.by))
}

// all returns them by id, which is the order of their acceptance.
func (l *letters) all() []*letter {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*letter, 0, len(l.by))
	for _, x := range l.by {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *letter) int { return strings.Compare(a.id, b.id) })
	return out
}

// DeadLetters returns at most limit of them, in the order of their acceptance,
// after the one named; from the first where after is empty. More says that
// there are others behind these.
func (s *Store) DeadLetters(limit int, after string) (page []DeadLetter, more bool) {
	for _, l := range s.letters.all() {
		if l.id <= after {
			continue
		}
		if len(page) == limit {
			return page, true
		}
		page = append(page, DeadLetter{
			ID: l.id, SessionID: l.write.write.SessionID, Operation: operation(l.write.write), Reason: l.reason, Accepted: l.write.write.At,
		})
	}
	return page, false
}

// RetryDeadLetter replays a dead letter, an update without the revision that it
// expected: whoever asks has decided. With drop it is dropped instead. It
// returns storage.ErrNotFound when there is no such dead letter, and the
// replay's error when it fails again; then it stays.
func (s *Store) RetryDeadLetter(ctx context.Context, id string, drop bool) error {
	s.letters.retrying.Lock()
	defer s.letters.retrying.Unlock()
	l := s.letters.get(id)
	if l == nil {
		return storage.ErrNotFound
	}
	if !drop {
		w := l.write.write
		if w.Update != nil {
			u := *w.Update
			u.IfRevision = 0
			w.Update = &u
		}
		if err := s.Replay(ctx, w); err != nil {
			if errors.Is(err, storage.ErrNotFound) {
				return errGone
			}
			return err
		}
	}
	record, err := doneRecord(l.write.seq)
	if err != nil {
		return err
	}
	// First out of memory: a snapshot that still had it would forget that it is
	// done with.
	s.letters.remove(id)
	at, err := s.disk.append(record)
	if err == nil {
		err = at.wait(ctx)
	}
	if err != nil {
		s.letters.restore(id, l.write, l.reason)
		return err
	}
	s.resumeParked(ctx)
	return nil
}

// lettersFull is the code of the warning that the dead-letter queue is full.
const lettersFull = "dead-letters-full"

// resumeParked replays the sessions that wait for room among the dead letters. The
// warning is raised again where that does not suffice.
func (s *Store) resumeParked(ctx context.Context) {
	s.board.Clear(ctx, lettersFull, "")
	if s.waiting.unpark() {
		s.poke()
	}
}

// errGone is the reason why a dead letter cannot be replayed when its session is
// not there: storage.ErrNotFound would say that the letter is not.
var errGone = fmt.Errorf("%w: it is not there any more", storage.ErrEnded)
