package storagetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
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

// ModelStart is the clock at the beginning of a history.
const ModelStart = 4_000_000_000_000 // in the year 2096, so that no key that a server lets go by its own clock goes

// modelSteps is how long a history is.
const modelSteps = 60

// CheckLifetimes holds random histories against the reference: creates,
// activity in order, late, twice and from the future, sweeps, policy changes,
// restarts and clock moves. It returns how many steps it made.
func CheckLifetimes(t *testing.T, open func() ModelStore) int {
	t.Helper()
	var steps atomic.Int64
	rapid.Check(t, func(t *rapid.T) { steps.Add(int64(History(t, open()))) })
	t.Logf("%d steps", steps.Load())
	return int(steps.Load())
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
	events   int
	requests map[string]string // project and request -> session
	sent     []storage.Activity
	told     map[string]int // lifecycle events that the feed delivered, by session and type
	seen     map[string]bool
}

// History makes one history and returns its length.
func History(t *rapid.T, ms ModelStore) int {
	defer ms.Close()
	o := OptionsFor(time.Second)
	m := &machine{
		T: t, ms: ms, now: ModelStart, reported: map[string]bool{}, requests: map[string]string{}, told: map[string]int{}, seen: map[string]bool{},
		ref: &reference{
			settle: o.SettleMax.Milliseconds(), retention: o.Retention.Milliseconds(),
			sessions: map[string]*refSession{}, told: map[string]int{},
		},
	}
	ms.SetClock(m.now)
	if rapid.IntRange(0, 4).Draw(t, "grouped") > 0 {
		m.join()
	}
	ops := []func(){
		m.create, m.create, m.event, m.event, m.event, m.read, m.read, m.report, m.report, m.report, m.ack, m.ack,
		m.activity, m.activity, m.again, m.sweep, m.sweep, m.sweep, m.pass, m.pass, m.pass, m.back, m.policy, m.look, m.end, m.remove, m.restart,
	}
	for range modelSteps {
		ops[rapid.IntRange(0, len(ops)-1).Draw(t, "op")]()
		m.compare()
	}
	m.settle()
	if m.reader != nil {
		m.ok(m.reader.Close())
	}
	return modelSteps
}

func (m *machine) ok(err error) {
	m.Helper()
	if err != nil {
		m.Fatalf("%v", err)
	}
}

func (m *machine) pick() *refSession {
	ids := slices.Sorted(maps.Keys(m.ref.sessions))
	if len(ids) == 0 {
		return nil
	}
	return m.ref.sessions[ids[rapid.IntRange(0, len(ids)-1).Draw(m.T, "session")]]
}

func (m *machine) millis(name string, low, high int) *durationpb.Duration {
	return durationpb.New(time.Duration(rapid.IntRange(low, high).Draw(m.T, name)) * time.Millisecond)
}

func (m *machine) drawPolicy() *sessionv1.TTLPolicy {
	p := &sessionv1.TTLPolicy{
		BaseTtl: m.millis("base", 500, 8000), Extension: m.millis("extension", 1, 6000), ExtendBelow: m.millis("below", 0, 9000),
		MinInterval: m.millis("interval", 0, 4000), ActiveWindow: m.millis("window", 1, 3000),
		MaxExtensions: proto.Int32(rapid.Int32Range(0, 5).Draw(m.T, "most")),
		Strategy:      sessionv1.TTLPolicy_Strategy(rapid.IntRange(0, 3).Draw(m.T, "strategy")),
	}
	if rapid.Bool().Draw(m.T, "limited") {
		p.MaxLifetime = durationpb.New(p.GetBaseTtl().AsDuration() + m.millis("more", 0, 9000).AsDuration())
	}
	return p
}

// policy changes what new sessions of a project get, and no others.
func (m *machine) policy() {
	project := m.project()
	if rapid.IntRange(0, 3).Draw(m.T, "delete") == 0 {
		if err := m.ms.DeletePolicy(m.Context(), project); !errors.Is(err, storage.ErrNotFound) {
			m.ok(err)
		}
		return
	}
	_, err := m.ms.SetPolicy(m.Context(), project, m.drawPolicy())
	m.ok(err)
}

func (m *machine) project() string {
	return rapid.SampledFrom([]string{"acme", "umbrella"}).Draw(m.T, "project")
}

// modelDefault is the server's default policy.
var modelDefault = &sessionv1.TTLPolicy{
	BaseTtl: durationpb.New(5 * time.Second), Extension: durationpb.New(3 * time.Second), MaxExtensions: proto.Int32(2),
	ExtendBelow: durationpb.New(2 * time.Second), MinInterval: durationpb.New(time.Second), ActiveWindow: durationpb.New(time.Second),
	Strategy: sessionv1.TTLPolicy_BELOW_THRESHOLD,
}

// newID is a session id without chance in it, so that a history can be made
// again.
func (m *machine) newID(project, user, request string) string {
	shard := rapid.IntRange(0, Shards-1).Draw(m.T, "shard")
	if user != "" || request != "" {
		shard = sessionid.ShardOf(project, user, request, Shards)
	}
	m.events++
	tail := []byte("aaaaaaaaaaaaaaaaaaaaaaaaa")
	for i, n := len(tail)-3, m.events; n > 0; i, n = i-1, n/26 {
		tail[i] = byte('a' + n%26)
	}
	// The shard is in the first 16 bits, 5 to a character.
	id := sessionid.New(shard)[:3] + string("aq"[shard&1]) + string(tail)
	if got, ok := sessionid.Shard(id, Shards); !ok || got != shard {
		m.Fatalf("made up id %q, which is on shard %d", id, got)
	}
	return id
}

// create makes a session as the service does.
func (m *machine) create() {
	if len(m.ref.sessions) >= 6 {
		return
	}
	project, user := m.project(), rapid.SampledFrom([]string{"", "ann", "bob"}).Draw(m.T, "user")
	layers := []*sessionv1.TTLPolicy{}
	if rapid.IntRange(0, 2).Draw(m.T, "own") > 0 {
		layers = append(layers, m.drawPolicy())
	}
	set, err := m.ms.GetPolicy(m.Context(), project)
	if !errors.Is(err, storage.ErrNotFound) {
		m.ok(err)
		layers = append(layers, set.GetPolicy())
	}
	p := lifetime.Resolve(append(layers, modelDefault)...)
	if len(lifetime.Check(p)) > 0 {
		return
	}
	request := rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(m.T, "request")
	id := m.newID(project, user, request)
	got, existed, err := m.ms.Create(m.Context(), &sessionv1.Session{
		Id: id, User: user, Project: project, Revision: 1, TtlPolicy: p,
		CreateTime: lifetime.Time(m.now), UpdateTime: lifetime.Time(m.now), LastActivityTime: lifetime.Time(m.now),
		ExpireTime: lifetime.Time(m.now + p.GetBaseTtl().AsDuration().Milliseconds()),
	}, request)
	m.ok(err)
	key := project + "/" + user + "/" + request
	if old := m.ref.sessions[m.requests[key]]; request != "" && old != nil {
		if !existed || got.GetId() != old.id {
			m.Fatalf("the same request made %s beside %s", got.GetId(), old.id)
		}
		return
	}
	if existed || got.GetId() != id {
		m.Fatalf("a new request was answered with %s", got.GetId())
	}
	m.requests[key] = id
	base := p.GetBaseTtl().AsDuration().Milliseconds()
	s := &refSession{
		id: id, project: project, request: request, create: m.now, expire: m.now + base, last: m.now,
		extension: p.GetExtension().AsDuration().Milliseconds(), below: p.GetExtendBelow().AsDuration().Milliseconds(),
		interval: p.GetMinInterval().AsDuration().Milliseconds(), window: p.GetActiveWindow().AsDuration().Milliseconds(),
		most: int(p.GetMaxExtensions()), strategy: p.GetStrategy(), ids: map[string]bool{},
	}
	s.shard, _ = sessionid.Shard(id, Shards)
	s.limit = s.expire + int64(s.most)*s.extension
	if p.GetMaxLifetime() != nil {
		s.limit = min(s.limit, s.create+p.GetMaxLifetime().AsDuration().Milliseconds())
	}
	m.ref.sessions[id] = s
	m.ref.append(s, storage.TypeCreated, m.now)
}

// event appends something that counts as activity, or something that does not.
func (m *machine) event() {
	s := m.pick()
	if s == nil {
		return
	}
	m.events++
	e := &sessionv1.Event{
		Id: fmt.Sprint("e", m.events), Type: rapid.SampledFrom([]string{"input:text", "input:text", "registry:updated"}).Draw(m.T, "type"),
		Time: lifetime.Time(m.now - int64(rapid.IntRange(0, 500).Draw(m.T, "age"))), Origin: sessionv1.Event_USER,
	}
	_, err := m.ms.Append(m.Context(), s.id, []*sessionv1.Event{e})
	if s.over != 0 || m.now >= s.expire {
		if !errors.Is(err, storage.ErrEnded) {
			m.Fatalf("appended to a session that is over: %v", err)
		}
		return
	}
	m.ok(err)
	m.ref.append(s, e.GetType(), m.now)
}

// join makes the activity group, or comes back to it.
func (m *machine) join() {
	r, err := m.ms.OpenFeed(m.Context(), storage.ActivityGroup, "consumer")
	m.ok(err)
	if m.reader == nil && !m.ref.grouped {
		m.ref.grouped = true
	}
	m.reader = r
	m.inbox = [Shards][]*sessionv1.FeedEntry{}
}

// unread is how many entries there are to read.
func (m *machine) unread() int {
	n := 0
	for shard := range m.inbox {
		n += len(m.ref.feeds[shard]) - m.ref.acked[shard] - len(m.inbox[shard])
	}
	return n
}

// read takes entries from the feed: as many as there must be, in order.
func (m *machine) read() {
	if m.reader == nil || m.unread() == 0 {
		return
	}
	m.take(rapid.IntRange(1, m.unread()).Draw(m.T, "entries"))
}

func (m *machine) take(n int) {
	ctx, cancel := context.WithTimeout(m.Context(), 20*time.Second)
	defer cancel()
	for n > 0 {
		b, err := m.reader.Next(ctx, n)
		if err != nil {
			m.Fatalf("%d entries are missing: %v", n, err)
		}
		n -= len(b.Entries)
		for _, e := range b.Entries {
			shard := int(e.GetShard())
			at := m.ref.acked[shard] + len(m.inbox[shard])
			if at >= len(m.ref.feeds[shard]) {
				m.Fatalf("shard %d delivers %v, after all of its %d entries", shard, e, at)
			}
			want := m.ref.feeds[shard][at]
			if e.GetSessionId() != want.session || e.GetEvent().GetType() != want.typ || lifetime.Millis(e.GetAppendTime()) > want.appended {
				m.Fatalf("shard %d delivers %v, want %+v", shard, e, want)
			}
			m.inbox[shard] = append(m.inbox[shard], e)
			if at := fmt.Sprint(shard, e.GetCursor()); !m.seen[at] {
				m.seen[at] = true
				m.told[e.GetSessionId()+" "+e.GetEvent().GetType()]++
			}
		}
	}
}

func counts(e *sessionv1.FeedEntry) bool { return e.GetEvent().GetType() == "input:text" }

// report asks about an event that was read, whichever.
func (m *machine) report() {
	var waiting []*sessionv1.FeedEntry
	for _, box := range m.inbox {
		for _, e := range box {
			if counts(e) {
				waiting = append(waiting, e)
			}
		}
	}
	if len(waiting) > 0 {
		m.reportOne(waiting[rapid.IntRange(0, len(waiting)-1).Draw(m.T, "entry")])
	}
}

func (m *machine) reportOne(e *sessionv1.FeedEntry) {
	m.extend(storage.Activity{SessionID: e.GetSessionId(), Time: e.GetEvent().GetTime().AsTime(), Kind: "input", EventID: e.GetEvent().GetId()})
	m.reported[e.GetEvent().GetId()] = true
}

func (m *machine) extend(a storage.Activity) {
	want := m.ref.extend(a.SessionID, a.Time.UnixMilli(), a.EventID, m.now)
	res, err := m.ms.Extend(m.Context(), []storage.Activity{a})
	m.ok(err)
	m.ok(res[0].Err)
	if got := res[0].Response.GetOutcome(); got != want {
		m.Fatalf("at +%d, activity %s of %s at +%d: %v (%s), want %v", m.now-ModelStart, a.EventID, a.SessionID, a.Time.UnixMilli()-ModelStart,
			got, res[0].Response.GetReason(), want)
	}
	m.sent = append(m.sent, a)
}

// ack acknowledges what needs no report any more, as the activity service does.
func (m *machine) ack() {
	if m.reader == nil {
		return
	}
	shard := rapid.IntRange(0, Shards-1).Draw(m.T, "shard")
	m.ackShard(shard)
}

func (m *machine) ackShard(shard int) {
	done := 0
	for _, e := range m.inbox[shard] {
		if counts(e) && !m.reported[e.GetEvent().GetId()] {
			break
		}
		done++
	}
	if done == 0 {
		return
	}
	m.ok(m.reader.Ack(m.Context(), []storage.FeedAck{{Shard: shard, Cursor: m.inbox[shard][done-1].GetCursor()}}))
	m.inbox[shard] = m.inbox[shard][done:]
	m.ref.acked[shard] += done
}

// activity reports something that no event tells of: in order, late, or from
// the future.
func (m *machine) activity() {
	s := m.pick()
	if s == nil {
		return
	}
	m.events++
	at := m.now + int64(rapid.SampledFrom([]int{0, 0, -100, -1500, -6000, 5000}).Draw(m.T, "shift"))
	if near := rapid.IntRange(0, 4).Draw(m.T, "near"); near < 3 {
		at = s.expire - 1 + int64(near) - 1
	}
	a := storage.Activity{SessionID: s.id, Time: time.UnixMilli(at), Kind: "input", EventID: fmt.Sprint("e", m.events)}
	if rapid.IntRange(0, 3).Draw(m.T, "unnamed") == 0 {
		a.EventID = ""
	}
	m.extend(a)
}

// again sends an earlier report once more.
func (m *machine) again() {
	if len(m.sent) > 0 {
		m.extend(m.sent[rapid.IntRange(0, len(m.sent)-1).Draw(m.T, "earlier")])
	}
}

// sweep checks, besides what the reference says, that nobody with activity
// before the deadline dies while that activity waits in the feed.
func (m *machine) sweep() {
	before := map[string]int64{}
	for shard, f := range m.ref.feeds {
		for i := m.ref.acked[shard]; m.ref.grouped && i < len(f); i++ {
			if s := m.ref.sessions[f[i].session]; f[i].typ == "input:text" && s != nil && f[i].appended < s.expire && m.now <= s.expire+m.ref.settle {
				before[s.id] = s.expire
			}
		}
	}
	expired := m.ref.sweep(m.now)
	res, err := m.ms.Sweep(m.Context())
	m.ok(err)
	if res.Expired != len(expired) {
		m.Fatalf("at +%d, swept %d sessions, want %d", m.now-ModelStart, res.Expired, len(expired))
	}
	for _, s := range expired {
		if before[s.id] != 0 {
			m.Fatalf("the reference lets %s die with activity in the feed", s.id)
		}
	}
}

// pass lets time go by, often to about a deadline.
func (m *machine) pass() {
	by := int64(rapid.SampledFrom([]int{1, 50, 400, 1500, 4000, 11_000, 25_000}).Draw(m.T, "ms"))
	if s := m.pick(); s != nil && rapid.Bool().Draw(m.T, "to a deadline") {
		by = max(1, s.expire-m.now+int64(rapid.IntRange(-2, 2).Draw(m.T, "off")))
	}
	m.now += by
	m.ms.SetClock(m.now)
}

// back sets the clock back a little, as when it is corrected.
func (m *machine) back() {
	m.now -= int64(rapid.IntRange(1, 300).Draw(m.T, "ms"))
	m.ms.SetClock(m.now)
}

// look reads in every way; compare will see what it changed.
func (m *machine) look() {
	s := m.pick()
	if s == nil {
		return
	}
	_, err := m.ms.ListEvents(m.Context(), storage.EventQuery{SessionID: s.id, Tail: 10, Limit: 10})
	m.ok(err)
	_, err = m.ms.List(m.Context(), storage.ListQuery{Project: s.project, Limit: 10})
	m.ok(err)
	_, err = m.ms.Explain(m.Context(), s.id)
	m.ok(err)
	_, err = m.ms.Get(m.Context(), s.id)
	m.ok(err)
}

func (m *machine) end() {
	s := m.pick()
	if s == nil {
		return
	}
	_, err := m.ms.End(m.Context(), s.id, "done")
	switch {
	case err == nil && s.over == 0 && m.now < s.expire:
		m.ref.end(s, sessionv1.Session_ENDED, storage.TypeEnded, m.now)
	default:
		m.ok(err)
	}
}

func (m *machine) remove() {
	s := m.pick()
	if s == nil || rapid.IntRange(0, 2).Draw(m.T, "really") > 0 {
		return
	}
	m.ok(m.ms.Delete(m.Context(), s.id))
	m.ref.append(s, storage.TypeDeleted, m.now)
	delete(m.ref.sessions, s.id)
}

// restart must change nothing but that what was not acknowledged comes again.
func (m *machine) restart() {
	if m.ms.Restart == nil {
		return
	}
	if m.reader != nil {
		m.ok(m.reader.Close())
	}
	m.ms.Store = m.ms.Restart()
	if m.reader != nil {
		m.join()
	}
}

// compare holds every session against the reference.
func (m *machine) compare() {
	ids := slices.Sorted(maps.Keys(m.ref.sessions))
	if len(ids) == 0 {
		return
	}
	got, err := m.ms.GetMany(m.Context(), ids)
	m.ok(err)
	for i, id := range ids {
		m.ok(got[i].Err)
		s, g := m.ref.sessions[id], got[i].Session
		have := fmt.Sprint(lifetime.Millis(g.GetCreateTime())-ModelStart, lifetime.Millis(g.GetExpireTime())-ModelStart,
			lifetime.Millis(g.GetLastActivityTime())-ModelStart, g.GetExtensionCount(), g.GetPhase(), g.GetEndTime() != nil)
		want := fmt.Sprint(s.create-ModelStart, s.expire-ModelStart, s.last-ModelStart, s.count, s.phase(m.now), s.over != 0)
		if have != want {
			m.Fatalf("at +%d, session %s: create, deadline, last activity, extensions, phase, over\n%s, want\n%s", m.now-ModelStart, id, have, want)
		}
		p := g.GetTtlPolicy()
		most := p.GetBaseTtl().AsDuration() + time.Duration(p.GetMaxExtensions())*p.GetExtension().AsDuration()
		if p.GetMaxLifetime() != nil {
			most = min(most, p.GetMaxLifetime().AsDuration())
		}
		if life := g.GetExpireTime().AsTime().Sub(g.GetCreateTime().AsTime()); life > most {
			m.Fatalf("session %s lives %v, its cap is %v", id, life, most)
		}
	}
}

// settle lets the consumer catch up and everything expire, and counts what was
// told: each lifecycle event exactly as often as the reference says.
func (m *machine) settle() {
	for range 3 {
		for m.reader != nil && m.unread() > 0 {
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
		return
	}
	m.take(m.unread())
	if !maps.Equal(m.told, m.ref.told) {
		m.Fatalf("told %v\nwant %v", m.told, m.ref.told)
	}
}
