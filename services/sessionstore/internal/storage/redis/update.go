package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// updateTries bounds how often an update without an expected revision is tried
// against concurrent changes.
const updateTries = 20

// Update changes labels and data.
func (s *Store) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	return s.update(ctx, id, []storage.Update{u}, present)
}

// update makes changes one after the other, in one script.
func (s *Store) update(ctx context.Context, id string, all []storage.Update, at asOf) (*sessionv1.Session, error) {
	expects := slices.ContainsFunc(all, func(u storage.Update) bool { return u.IfRevision != 0 })
	for range updateTries {
		out, err := s.tryUpdate(ctx, id, all, at)
		if expects || !errors.Is(err, storage.ErrConflict) {
			return out, err
		}
	}
	return nil, fmt.Errorf("%w: the session changes too fast", storage.ErrUnavailable)
}

func (s *Store) tryUpdate(ctx context.Context, id string, all []storage.Update, at asOf) (*sessionv1.Session, error) {
	old, writes, err := s.before(ctx, id, at)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(u storage.Update) bool { return u.WriteID != "" && slices.Contains(writes, u.WriteID) })
	switch {
	case len(all) == 0:
		return old, nil
	case old.GetPhase() == sessionv1.Session_ENDED, old.GetPhase() == sessionv1.Session_EXPIRED:
		return nil, storage.ErrEnded
	}
	labels := old.GetLabels()
	var ids []string
	var data *storage.Update // the latest that sets data
	for i, u := range all {
		if u.IfRevision != 0 && u.IfRevision != old.GetRevision()+int64(i) {
			return nil, storage.ErrConflict
		}
		if labels, err = u.Labels(labels); err != nil {
			return nil, err
		}
		if u.WriteID != "" {
			ids = append(ids, u.WriteID)
		}
		if u.SetData {
			data = &all[i]
		}
	}
	lab, err := encodeLabels(labels)
	if err != nil {
		return nil, err
	}
	call := s.scripts.update.on(s.shardOf(id), id, old.GetRevision(), strings.Join(ids, " "), storage.MaxWriteIDs, at.arg(), len(all), "lab", lab)
	switch {
	case data != nil && data.Data == nil:
		call = call.with("-", "data")
	case data != nil:
		b, err := proto.Marshal(data.Data)
		if err != nil {
			return nil, err
		}
		call = call.with("data", b)
	}
	r, err := s.run(ctx, call)
	if err := s.confirm(ctx, s.shardOf(id), check(r, err)); err != nil {
		return nil, err
	}
	return s.answered(r, 1)
}

// before reads a session that is to be updated, with its phase as of then, and
// the names of its latest updates.
func (s *Store) before(ctx context.Context, id string, at asOf) (*sessionv1.Session, []string, error) {
	if err := s.usable(ctx); err != nil {
		return nil, nil, err
	}
	sh := s.shardOf(id)
	if sh == nil {
		return nil, nil, storage.ErrNotFound
	}
	ctx, end := s.span(ctx, "get")
	cmd := read(ctx, sh, id, "wids")
	err := failure(s.conn.read.do(ctx, cmd))
	end(err)
	if err != nil {
		return nil, nil, err
	}
	vals := cmd.Val()
	when := at.ms
	if at == present {
		when = s.now()
	}
	old, err := s.parsed(vals, when)
	if err != nil {
		return nil, nil, s.confirm(ctx, sh, err)
	}
	return old, strings.Fields(vals[len(sessionFields)]), nil
}
