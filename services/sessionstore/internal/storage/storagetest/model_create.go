package storagetest

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

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
func (m *machine) policy() bool {
	project := m.project()
	if rapid.IntRange(0, 3).Draw(m.T, "delete") == 0 {
		return !m.missing(m.ms.DeletePolicy(m.Context(), project))
	}
	_, err := m.ms.SetPolicy(m.Context(), project, m.drawPolicy())
	m.ok(err)
	return true
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
	shard := rapid.IntRange(0, 1).Draw(m.T, "shard") // few, so that sessions share feeds
	if user != "" || request != "" {
		shard = sessionid.ShardOf(project, user, request, Shards)
	}
	m.made++
	tail := []byte("aaaaaaaaaaaaaaaaaaaaaaaaa")
	for i, n := len(tail)-3, m.made; n > 0; i, n = i-1, n/26 {
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
func (m *machine) create() bool {
	if len(m.ref.sessions) >= 6 {
		return false
	}
	project, user := m.project(), rapid.SampledFrom([]string{"", "ann", "bob"}).Draw(m.T, "user")
	layers := []*sessionv1.TTLPolicy{}
	if rapid.IntRange(0, 2).Draw(m.T, "own") > 0 {
		layers = append(layers, m.drawPolicy())
	}
	set, err := m.ms.GetPolicy(m.Context(), project)
	if !m.missing(err) {
		layers = append(layers, set.GetPolicy())
	}
	p := lifetime.Resolve(append(layers, modelDefault)...)
	if len(lifetime.Check(p)) > 0 {
		return false
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
		return true
	}
	if existed || got.GetId() != id {
		m.Fatalf("a new request was answered with %s", got.GetId())
	}
	m.requests[key] = id
	base := p.GetBaseTtl().AsDuration().Milliseconds()
	s := &refSession{
		id: id, project: project, revision: 1, create: m.now, expire: m.now + base, last: m.now,
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
	return true
}
