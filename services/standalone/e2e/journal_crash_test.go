//go:build e2e

package e2e

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// journalFault is a row of the journal's own: what befalls its process or its
// disk.
type journalFault struct {
	name, expect string
	run          func(t *testing.T) journaled
}

var journalFaults = []journalFault{
	{"kill -9 of the store while it journals, and while it replays", "it starts without Redis and goes on", func(t *testing.T) journaled {
		return runKills(t, func(string) {})
	}},
	{"the same, with an unfinished write at the journal's end", "that is cut off", func(t *testing.T) journaled {
		return runKills(t, func(dir string) { tear(t, dir) })
	}},
	{"a flipped bit in the middle of the journal", "refused with file and offset; nothing is lost once it is mended", runFlip},
	{"the journal's disk is full, then has room", "writes refused, saying why, until there is room", func(t *testing.T) journaled {
		return runFull(t, newTmpfs(t), roomFirst)
	}},
	{"the journal's disk is full, then Redis is back", "what was accepted is replayed all the same", func(t *testing.T) journaled {
		return runFull(t, newTmpfs(t), redisFirst)
	}},
	{"the journal's files may grow no further", "as with a full disk", func(t *testing.T) journaled {
		return runFull(t, newFileLimit(t), roomFirst)
	}},
	{"the journal's directory cannot be written", "refused at the start", runReadOnly},
}

// runKills kills the process in the middle of journaling, twice, and in the
// middle of replaying; between a death and the next start the directory is
// spoiled.
func runKills(t *testing.T, spoil func(dir string)) journaled {
	r := newReplica(t, t.TempDir())
	r.start(t)
	r.load(func() {
		eventually(t, 20*time.Second, "the load is on", func() bool { return r.ledger.writes() > 300 })
		must(t, r.redis.Kill())
		r.untilJournaled(t, 500)
		r.kill(t)
	})
	spoil(r.dir)
	r.start(t)
	r.remembered(t)
	r.load(func() {
		r.untilJournaled(t, 300)
		r.kill(t)
	})
	spoil(r.dir)
	r.start(t)
	r.remembered(t)
	waits := r.depth(t)
	must(t, r.redis.Restart(t.Context()))
	for deadline := time.Now().Add(20 * time.Second); r.depth(t) > waits/2 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	left := r.depth(t)
	r.kill(t)
	t.Logf("killed with %d of %d writes left to be replayed", left, waits)
	spoil(r.dir)
	r.start(t)
	r.load(func() {
		eventually(t, 30*time.Second, "all is replayed, under load", func() bool { return r.depth(t) == 0 })
	})
	return r.finish(t)
}

// tear puts the beginning of a batch at the end of the log, as a crash in the
// middle of a write leaves it.
func tear(t *testing.T, dir string) {
	t.Helper()
	all := segments(t, dir)
	f, err := os.OpenFile(all[len(all)-1], os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	batch := make([]byte, 100)
	binary.LittleEndian.PutUint32(batch, 0x42_54_53_53)
	binary.LittleEndian.PutUint32(batch[4:], 4000)
	_, err = f.Write(batch)
	must(t, err)
	must(t, f.Close())
}

// runFlip flips one bit of what was acknowledged.
func runFlip(t *testing.T) journaled {
	r := newReplica(t, t.TempDir())
	r.start(t)
	r.load(func() {
		eventually(t, 20*time.Second, "the load is on", func() bool { return r.ledger.writes() > 300 })
		must(t, r.redis.Kill())
		r.untilJournaled(t, 300)
		r.kill(t)
	})
	path := segments(t, r.dir)[0]
	raw, err := os.ReadFile(path)
	must(t, err)
	flip := func() {
		raw[len(raw)/2] ^= 4
		must(t, os.WriteFile(path, raw, 0o600))
	}
	flip()
	if said := r.refused(t, r.dir); !strings.Contains(said, path) || !strings.Contains(said, "offset ") {
		t.Errorf("it does not say where the damage is: %s", said)
	}
	flip()
	r.start(t)
	must(t, r.redis.Restart(t.Context()))
	return r.finish(t)
}

// runReadOnly starts a store that cannot write its journal, Redis being there.
func runReadOnly(t *testing.T) journaled {
	dir := filepath.Join(readOnly(t), "journal")
	r := newReplica(t, dir)
	if said := r.refused(t, dir); !strings.Contains(said, dir) || !strings.Contains(said, "read-only") && !strings.Contains(said, "permission denied") {
		t.Errorf("it does not say what is wrong: %s", said)
	}
	m := journaled{}
	m.errors = "does not start"
	return m
}

// What comes first after the disk was full.
const (
	roomFirst = iota
	redisFirst
)

// runFull journals until the disk is full. What was acknowledged until then is
// not lost, whichever comes back first; and the journal works again then.
func runFull(t *testing.T, d disk, first int) journaled {
	r := newReplica(t, d.dir)
	r.start(t)
	d.limit(r.proc)
	w := r.writers[0]
	w.data = structpb.NewStringValue(strings.Repeat("x", 4000))
	w.n = 1
	w.create(t.Context())
	id := w.mine[0]
	event := func() error {
		w.n++
		w.event(t.Context(), id)
		return w.err
	}
	must(t, event())
	must(t, r.redis.Kill())
	for event() == nil {
		if w.n > 900 {
			t.Fatal("the disk does not get full")
		}
	}
	for range 10 {
		if err := event(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "journal is full or cannot be written") {
			t.Errorf("answered %v, want UNAVAILABLE for the journal", err)
		}
	}
	eventually(t, 5*time.Second, "that it is broken is told", func() bool { return r.broken(t) })
	r.remembered(t)
	works := func() {
		t.Helper()
		eventually(t, 10*time.Second, "the journal can be written", func() bool { return !r.broken(t) })
		before := r.depth(t)
		must(t, event())
		if r.depth(t) != before+1 {
			t.Error("a write is not journaled")
		}
	}
	if first == redisFirst {
		must(t, r.redis.Restart(t.Context()))
		eventually(t, 20*time.Second, "all is replayed", func() bool { return r.depth(t) == 0 })
		must(t, event())
		must(t, r.redis.Kill())
	}
	d.more(r.proc)
	works()
	r.kill(t)
	r.start(t)
	r.remembered(t)
	must(t, r.redis.Restart(t.Context()))
	return r.finish(t)
}
