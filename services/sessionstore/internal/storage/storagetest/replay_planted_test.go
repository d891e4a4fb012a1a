package storagetest_test

import (
	"context"
	"sync"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Stores with a bug each in Replay, Hold or the names of updates.

// replaysNow calls the method that a write stands for.
type replaysNow struct{ storage.Store }

func (s replaysNow) Replay(ctx context.Context, w storage.Write) error {
	var err error
	switch {
	case w.Update != nil:
		_, err = s.Update(ctx, w.SessionID, *w.Update)
	case w.End != nil:
		_, err = s.End(ctx, w.SessionID, w.End.Reason)
	case w.Append != nil:
		_, err = s.Append(ctx, w.SessionID, w.Append)
	case w.Extend != nil:
		_, err = s.Extend(ctx, []storage.Activity{*w.Extend})
	default:
		err = s.Store.Replay(ctx, w)
	}
	return err
}

type restartsClocks struct{ storage.Store }

func (s restartsClocks) Replay(ctx context.Context, w storage.Write) error {
	if w.Create != nil {
		in := storage.Shallow(w.Create.Session)
		more := int64(1000)
		in.ExpireTime = lifetime.Time(lifetime.Millis(in.GetExpireTime()) + more)
		w.Create = &storage.CreateWrite{Session: in, RequestKey: w.Create.RequestKey}
	}
	return s.Store.Replay(ctx, w)
}

type forgetsCursors struct{ storage.Store }

func (s forgetsCursors) Replay(ctx context.Context, w storage.Write) error {
	var events []*sessionv1.Event
	for _, e := range w.Append {
		events = append(events, storage.WithCursor(e, ""))
	}
	w.Append, w.Cursor = events, ""
	return s.Store.Replay(ctx, w)
}

// takesRequests lets a replayed create answer for the request of another.
type takesRequests struct{ storage.Store }

func (s takesRequests) Replay(ctx context.Context, w storage.Write) error {
	if w.Create != nil {
		_, _, err := s.Create(ctx, w.Create.Session, w.Create.RequestKey)
		return err
	}
	return s.Store.Replay(ctx, w)
}

// twins replays creates into a store that does not know what was deleted.
type twins struct {
	storage.Store
	mu   *sync.Mutex
	live map[string]string
}

func newTwins(s storage.Store) storage.Store {
	return twins{Store: s, mu: &sync.Mutex{}, live: map[string]string{}}
}

func (s twins) Replay(ctx context.Context, w storage.Write) error {
	if err := s.Store.Replay(ctx, w); err != nil || w.Create == nil {
		return err
	}
	if _, err := s.Store.Get(ctx, w.SessionID); err == nil {
		return nil
	}
	shard, _ := sessionid.Shard(w.SessionID, 8)
	in := storage.Shallow(w.Create.Session)
	in.Id = sessionid.New(shard)
	s.mu.Lock()
	s.live[w.SessionID] = in.GetId()
	s.mu.Unlock()
	_, _, err := s.Create(ctx, in, "")
	return err
}

func (s twins) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	s.mu.Lock()
	twin, ok := s.live[id]
	s.mu.Unlock()
	if ok {
		id = twin
	}
	return s.Store.Get(ctx, id)
}

type mindsDeletes struct{ storage.Store }

func (s mindsDeletes) Replay(ctx context.Context, w storage.Write) error {
	if w.Delete {
		return s.Delete(ctx, w.SessionID)
	}
	return s.Store.Replay(ctx, w)
}

// unnamedReplays forgets what makes a write the same again.
type unnamedReplays struct{ storage.Store }

func (s unnamedReplays) Replay(ctx context.Context, w storage.Write) error {
	if w.Update != nil {
		u := *w.Update
		u.WriteID = ""
		w.Update = &u
	}
	return s.Store.Replay(ctx, w)
}

// endsReplays ends sessions that it is to delete.
type endsReplays struct{ storage.Store }

func (s endsReplays) Replay(ctx context.Context, w storage.Write) error {
	if w.Delete {
		w.Delete, w.End = false, &storage.EndWrite{}
	}
	return s.Store.Replay(ctx, w)
}

type takesAll struct{ storage.Store }

func (s takesAll) Replay(context.Context, storage.Write) error { return nil }

type unnamed struct{ storage.Store }

func (s unnamed) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	u.WriteID = ""
	return s.Store.Update(ctx, id, u)
}

type oneName struct{ storage.Store }

func (s oneName) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	u.WriteID = "same"
	return s.Store.Update(ctx, id, u)
}

type noHolds struct{ storage.Store }

func (s noHolds) Hold(context.Context, string, time.Time) error { return nil }

// clings never gives a hold up.
type clings struct{ storage.Store }

func (s clings) Hold(ctx context.Context, holder string, from time.Time) error {
	if from.IsZero() {
		return nil
	}
	return s.Store.Hold(ctx, holder, from)
}

// oneHolder takes every holder for the same.
type oneHolder struct{ storage.Store }

func (s oneHolder) Hold(ctx context.Context, _ string, from time.Time) error {
	return s.Store.Hold(ctx, "one", from)
}

// onward only lets holds move forward.
type onward struct {
	storage.Store
	last time.Time
}

func (s *onward) Hold(ctx context.Context, holder string, from time.Time) error {
	if from.Before(s.last) {
		return nil
	}
	s.last = from
	return s.Store.Hold(ctx, holder, from)
}

// lapsing gives every hold up with the first that is given up.
type lapsing struct {
	storage.Store
	holders map[string]bool
}

func (s *lapsing) Hold(ctx context.Context, holder string, from time.Time) error {
	s.holders[holder] = true
	if !from.IsZero() {
		return s.Store.Hold(ctx, holder, from)
	}
	for h := range s.holders {
		if err := s.Store.Hold(ctx, h, from); err != nil {
			return err
		}
	}
	return nil
}

// forEver does not sweep at all from the first hold on.
type forEver struct {
	storage.Store
	held bool
}

func (s *forEver) Hold(ctx context.Context, holder string, from time.Time) error {
	s.held = true
	return s.Store.Hold(ctx, holder, from)
}

func (s *forEver) Sweep(ctx context.Context) (storage.SweepResult, error) {
	if s.held {
		return storage.SweepResult{}, nil
	}
	return s.Store.Sweep(ctx)
}

// loses appends nothing of what it replays.
type loses struct{ storage.Store }

func (s loses) Replay(ctx context.Context, w storage.Write) error {
	w.Append = w.Append[:0]
	return s.Store.Replay(ctx, w)
}
