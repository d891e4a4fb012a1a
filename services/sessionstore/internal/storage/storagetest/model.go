package storagetest

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// ModelStore is an empty store whose clock a test of lifetimes sets.
type ModelStore struct {
	storage.Store
	// SetClock moves the store's clock, Unix ms, in either direction.
	SetClock func(now int64)
	// Restart closes the store and opens it again over the same data; nil for a
	// store that keeps none.
	Restart func() storage.Store
	Close   func()
}

const (
	// ModelStart is the clock at the beginning of a history: in the year 2096,
	// so that no key that a server lets go by its own clock goes.
	ModelStart = 4_000_000_000_000
	// modelSteps is how many steps a history takes that do something.
	modelSteps = 60
	// modelTries bounds the attempts at them: a step such as acknowledging may
	// find nothing to do, and shrinking likes to draw the same step for ever.
	modelTries = 4 * modelSteps
)

// CheckLifetimes holds random histories against the reference: creates,
// activity in order, late, twice and from the future, sweeps, policy changes,
// restarts and clock moves. Flags of rapid say how many histories; a fifth of
// them under -short. It fails when they were shorter than they look.
func CheckLifetimes(t *testing.T, open func() ModelStore) {
	t.Helper()
	var steps, histories atomic.Int64
	rapid.Check(t, func(t *rapid.T) {
		histories.Add(1)
		steps.Add(int64(History(t, open())))
	})
	checks, err := strconv.Atoi(flag.Lookup("rapid.checks").Value.String())
	if err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		checks /= 5
	}
	t.Logf("%d steps in %d histories", steps.Load(), histories.Load())
	// A little less than all, for the odd history that ran out of tries.
	if want := int64(checks * (modelSteps - 1)); steps.Load() < want && !t.Failed() {
		t.Errorf("%d steps, want at least %d", steps.Load(), want)
	}
}

// machine runs a history against a store and the reference.
type machine struct {
	*rapid.T
	ms     ModelStore
	ref    *reference
	now    int64
	reader storage.FeedReader
	// inbox are the entries that were read of each shard and not acknowledged;
	// reported says which of them the store was asked about.
	inbox    [Shards][]*sessionv1.FeedEntry
	reported map[string]bool
	made     int               // sessions and events, to name them
	requests map[string]string // project, user and request -> session
	sent     []storage.Activity
	told     map[string]int // lifecycle events that the feed delivered, by session and type
	seen     map[string]bool
}

// History makes one history and returns how many steps of it did something.
func History(t *rapid.T, ms ModelStore) int {
	defer ms.Close()
	o := OptionsFor(time.Second)
	m := &machine{
		T: t, ms: ms, now: ModelStart,
		reported: map[string]bool{}, requests: map[string]string{}, told: map[string]int{}, seen: map[string]bool{},
		ref: &reference{
			settle: o.SettleMax.Milliseconds(), retention: o.Retention.Milliseconds(),
			sessions: map[string]*refSession{}, told: map[string]int{},
		},
	}
	ms.SetClock(m.now)
	if rapid.IntRange(0, 4).Draw(t, "grouped") > 0 {
		m.join()
	}
	// Each says whether it did something.
	ops := []func() bool{
		m.create, m.create, m.event, m.event, m.event, m.read, m.read, m.report, m.report, m.report, m.ack, m.ack,
		m.activity, m.activity, m.again, m.batch, m.sweep, m.sweep, m.sweep, m.pass, m.pass, m.pass, m.back, m.policy,
		m.look, m.end, m.remove, m.restart,
	}
	steps := 0
	for try := 0; try < modelTries && steps < modelSteps; try++ {
		if ops[rapid.IntRange(0, len(ops)-1).Draw(t, "op")]() {
			steps++
			m.compare()
		}
	}
	m.settle()
	m.ok(m.reader.Close())
	return steps
}

func (m *machine) ok(err error) {
	m.Helper()
	if err != nil {
		m.Fatalf("%v", err)
	}
}

// missing is a failure unless there is nothing there.
func (m *machine) missing(err error) bool {
	m.Helper()
	if errors.Is(err, storage.ErrNotFound) {
		return true
	}
	m.ok(err)
	return false
}

func (m *machine) pick() *refSession {
	ids := slices.Sorted(maps.Keys(m.ref.sessions))
	if len(ids) == 0 {
		return nil
	}
	return m.ref.sessions[ids[rapid.IntRange(0, len(ids)-1).Draw(m.T, "session")]]
}

// sessions reads every session of the reference.
func (m *machine) sessions() []*sessionv1.Session {
	ids := slices.Sorted(maps.Keys(m.ref.sessions))
	if len(ids) == 0 {
		return nil
	}
	got, err := m.ms.GetMany(m.Context(), ids)
	m.ok(err)
	out := make([]*sessionv1.Session, len(ids))
	for i, r := range got {
		m.ok(r.Err)
		out[i] = r.Session
	}
	return out
}

// compare holds every session against the reference, and against the cap that
// its policy promises.
func (m *machine) compare() {
	for _, g := range m.sessions() {
		s := m.ref.sessions[g.GetId()]
		have := fmt.Sprint(lifetime.Millis(g.GetCreateTime())-ModelStart, lifetime.Millis(g.GetExpireTime())-ModelStart,
			lifetime.Millis(g.GetLastActivityTime())-ModelStart, g.GetExtensionCount(), g.GetRevision(), g.GetPhase(), g.GetEndTime() != nil)
		want := fmt.Sprint(s.create-ModelStart, s.expire-ModelStart, s.last-ModelStart, s.count, s.revision, s.phase(m.now), s.over != 0)
		if have != want {
			m.Fatalf("at +%d, session %s: create, deadline, last activity, extensions, revision, phase, over\n%s, want\n%s", m.now-ModelStart, s.id, have, want)
		}
		p := g.GetTtlPolicy()
		most := p.GetBaseTtl().AsDuration() + time.Duration(p.GetMaxExtensions())*p.GetExtension().AsDuration()
		if p.GetMaxLifetime() != nil {
			most = min(most, p.GetMaxLifetime().AsDuration())
		}
		if life := g.GetExpireTime().AsTime().Sub(g.GetCreateTime().AsTime()); life > most {
			m.Fatalf("session %s lives %v, its cap is %v", s.id, life, most)
		}
	}
}

// settle lets the consumer catch up and everything expire, and counts what was
// told: each lifecycle event exactly as often as the reference says.
func (m *machine) settle() {
	for range 3 {
		if m.reader != nil {
			m.take(m.unread())
		}
		for shard, box := range m.inbox {
			for _, e := range box {
				if counts(e) && !m.reported[e.GetEvent().GetId()] {
					m.reportOne(e)
				}
			}
			m.ackShard(shard)
		}
		m.compare()
		m.now += 60_000
		m.ms.SetClock(m.now)
		m.sweep()
	}
	for id, s := range m.ref.sessions {
		if s.over == 0 {
			m.Fatalf("session %s never dies", id)
		}
	}
	if m.reader == nil {
		m.join() // a new group starts at the oldest entry, which here is the first
	}
	m.take(m.unread())
	if !maps.Equal(m.told, m.ref.told) {
		m.Fatalf("told %v\nwant %v", m.told, m.ref.told)
	}
}
