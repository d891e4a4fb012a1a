package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// A missing key proves that there is no session, but for one case: the master of a
// slot fails over in the middle of the slot's migration. The replica that is
// promoted does not know of the migration (Redis 7), so what has moved already is
// simply missing to it. The importing node still knows. So before a cluster's
// answer "not found" counts, the masters are asked for slots that one of them
// imports and none of them migrates.

// errHalfMoved: some keys of the slot may be on a node that does not own it.
var errHalfMoved = fmt.Errorf("%w: a slot is half moved since its master failed over; complete the move (redis-cli --cluster fix)", storage.ErrUnavailable)

// confirm returns err, or why it cannot be known, where err is that there is no such
// session.
func (s *Store) confirm(ctx context.Context, sh *shard, err error) error {
	return (&absences{s: s}).confirm(ctx, sh, err)
}

// absences confirms the misses of one call, all of them by one look, which begins
// after they were met.
type absences struct {
	s      *Store
	looked bool
	stuck  map[int64]bool
	err    error
}

func (a *absences) confirm(ctx context.Context, sh *shard, err error) error {
	if !a.s.conn.cluster || !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if !a.looked {
		a.looked = true
		a.stuck, a.err = a.s.stuckSlots(ctx)
	}
	if a.err != nil {
		return a.err
	}
	if len(a.stuck) == 0 {
		return err
	}
	cmd := goredis.NewIntCmd(ctx, "cluster", "keyslot", sh.feed())
	if kerr := a.s.conn.read.client.Process(ctx, cmd); kerr != nil {
		return failure(kerr)
	}
	if a.stuck[cmd.Val()] {
		return errHalfMoved
	}
	return err
}

// stuckSlots returns the slots that a master imports and no master migrates. A
// master that does not answer is taken to import none.
func (s *Store) stuckSlots(ctx context.Context) (map[int64]bool, error) {
	open, err := s.looks.fresh(func() (openSlots, error) {
		servers, err := s.conn.read.servers(ctx)
		if err != nil {
			return openSlots{}, failure(err)
		}
		out := openSlots{importing: map[int64]bool{}, migrating: map[int64]bool{}}
		for _, node := range servers {
			if nodes, err := node.ClusterNodes(ctx).Result(); err == nil {
				out.read(nodes)
			}
		}
		return out, nil
	})
	if err != nil || len(open.importing) == 0 {
		return nil, err
	}
	stuck := map[int64]bool{}
	for slot := range open.importing {
		if !open.migrating[slot] {
			stuck[slot] = true
		}
	}
	return stuck, nil
}

// openSlots are the slots that are on their way from one master to another.
type openSlots struct{ importing, migrating map[int64]bool }

// read adds those of the node that has replied to CLUSTER NODES: its own line ends
// with [slot->-node] for each slot that it migrates, and [slot-<-node] for each that
// it imports.
func (o openSlots) read(nodes string) {
	f := ownLine(nodes)
	for i := 8; i < len(f); i++ {
		number, way, _ := strings.Cut(strings.TrimPrefix(f[i], "["), "-")
		slot, err := strconv.ParseInt(number, 10, 64)
		switch {
		case err != nil || !strings.HasPrefix(f[i], "["):
		case strings.HasPrefix(way, "<"):
			o.importing[slot] = true
		default:
			o.migrating[slot] = true
		}
	}
}

// ownLine returns the fields of the line that a node's reply to CLUSTER NODES has
// of itself, nil for none: id, address, flags, master, ping, pong, epoch, link, and
// its slots.
func ownLine(nodes string) []string {
	for line := range strings.Lines(nodes) {
		if f := strings.Fields(line); len(f) >= 8 && strings.Contains(f[2], "myself") {
			return f
		}
	}
	return nil
}

// looks makes one look at a time, for all who have asked before it began.
type looks struct {
	begun atomic.Int64

	mu   sync.Mutex
	last int64 // the number of the latest look
	open openSlots
	err  error
}

// fresh returns the outcome of a look that begins after the call.
func (l *looks) fresh(look func() (openSlots, error)) (openSlots, error) {
	asked := l.begun.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last > asked && l.err == nil {
		return l.open, nil
	}
	l.last = l.begun.Add(1)
	l.open, l.err = look()
	return l.open, l.err
}
