package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// format is the version of the data that this program writes, in the deployment's
// meta hash. A program refuses data of a format that it does not read.
//
//	1  up to 0.1: scripts may lose index entries while slots of a cluster move
//	2  every script declares its keys, and a full repair has restored what earlier
//	   ones lost
//
// Both have the same keys and fields. New data begins with the latest; a full
// Repair raises older data to it; after that, earlier programs refuse to start.
const format = "2"

// readable are the formats that this program reads.
var readable = []string{"1", format}

// checked is the outcome of the check: nil, or the mismatch that stays for as
// long as the store is open.
type checked struct{ err error }

// mismatchError says that what is in Redis was made by another configuration
// or version.
type mismatchError struct{ why string }

func (e *mismatchError) Error() string { return e.why }

// admit makes the check for everybody who waits for it. It goes on when the
// caller who began it leaves.
func (s *Store) admit(ctx context.Context) error {
	done := s.checking.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*s.opts.Timeout)
		defer cancel()
		err := s.check(ctx)
		if lack := (*rightsError)(nil); errors.As(err, &lack) {
			err = fmt.Errorf("%w: %w", storage.ErrUnavailable, err) // until they are granted
		}
		return nil, err
	})
	select {
	case r := <-done:
		return r.Err
	case <-s.closed:
		return storage.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check compares what is in Redis with the options, unless that was done. A
// Redis that does not answer is no outcome.
func (s *Store) check(ctx context.Context) error {
	if c := s.checked.Load(); c != nil {
		return c.err
	}
	err := s.checkRights(ctx)
	if err == nil {
		err = s.checkMeta(ctx)
		if err == nil {
			err = s.measureClock(ctx)
		}
		// What is wrong with a server explains its error replies. One that does not
		// answer is not asked again.
		var reply goredis.Error
		if err == nil || errors.As(err, &reply) {
			if unfit := s.checkServers(ctx); unfit != nil {
				err = unfit
			}
		}
	}
	err = s.explainDeployment(err)
	var mismatch *mismatchError
	switch {
	case err == nil:
		s.checked.Store(&checked{})
	case errors.As(err, &mismatch):
		s.checked.Store(&checked{err})
		s.opts.Log.ErrorContext(ctx, "this Redis cannot be used", slog.Any("error", err))
	}
	return err
}

// explainDeployment says how --redis-url should name a deployment of another kind.
func (s *Store) explainDeployment(err error) error {
	var reply goredis.Error
	if !errors.As(err, &reply) {
		return err
	}
	switch _, moved := goredis.IsMovedError(err); {
	case moved && !s.conn.cluster:
		return fmt.Errorf("--redis-url: this server is part of a cluster, want redis+cluster:// or rediss+cluster://: %w", err)
	case s.conn.cluster && strings.Contains(reply.Error(), "cluster support disabled"):
		return fmt.Errorf("--redis-url: this server is no cluster, want redis:// or rediss:// with one host: %w", err)
	}
	return err
}

func (s *Store) checkMeta(ctx context.Context) error {
	r, err := s.meta(ctx)
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if got := r.text(0); got != strconv.Itoa(s.opts.Shards) {
		return &mismatchError{fmt.Sprintf("--shards: got %d, but this Redis was first used with %s shards, which cannot change", s.opts.Shards, got)}
	}
	got := r.text(1)
	if !slices.Contains(readable, got) {
		return &mismatchError{fmt.Sprintf("this Redis holds format %s, this program reads formats %s", storage.Shorten(got), strings.Join(readable, " and "))}
	}
	if got != format {
		s.opts.Log.WarnContext(ctx, "an earlier version may have lost index entries; when every replica is upgraded, run `stoker repair` once",
			slog.String("format", got), slog.String("latest", format))
	}
	s.dataFormat.Store(&got)
	epoch := r.text(2)
	s.epoch.CompareAndSwap(nil, &epoch) // else the first look finds that it has changed
	return nil
}
