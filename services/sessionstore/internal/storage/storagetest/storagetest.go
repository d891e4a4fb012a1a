// Package storagetest is the conformance suite of the storage contract: a case
// for each *must* in package storage. Every backend and decorator runs it.
package storagetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// Shards is how many shards every store under test has.
const Shards = 8

// MaxEvents is how many events a log keeps in every store under test.
const MaxEvents = 20

// Fixture is an empty store to test.
type Fixture struct {
	Store storage.Store
	// Unit is the suite's unit of time: policies are a few units long. A
	// backend whose clock can be moved uses a second; one that has to wait
	// uses as little as it can tell apart.
	Unit time.Duration
	// Now is the store's clock.
	Now func() time.Time
	// Advance lets time pass for the store.
	Advance func(d time.Duration)
	// Replica opens another store over the same data; nil when there is none.
	Replica func() storage.Store
	// Entries counts what is kept per session, indexes included; nil when the
	// backend cannot tell.
	Entries func() int
}

// Options are what a store under test must be opened with: Shards, MaxEvents,
// and these.
type Options struct {
	SettleMax time.Duration // in units: 20
	Retention time.Duration // in units: 10
}

// OptionsFor returns the options for a unit of time.
func OptionsFor(unit time.Duration) Options {
	return Options{SettleMax: 20 * unit, Retention: 10 * unit}
}

// Factory opens an empty store for one case and registers its cleanup.
type Factory func(t testing.TB) Fixture

// TB is what a case needs of a test.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Context() context.Context
}

// Case is one obligation of the contract.
type Case struct {
	Name string
	Run  func(t TB, fx Fixture)
}

// Run runs every case over stores from the factory. skip names the cases that
// cannot run over this backend, each with its reason.
func Run(t *testing.T, factory Factory, skip map[string]string) {
	t.Helper()
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			if why, ok := skip[c.Name]; ok {
				t.Skip(why)
			}
			t.Parallel()
			c.Run(t, factory(t))
		})
		delete(skip, c.Name)
	}
	for name := range skip {
		t.Errorf("there is no case %q to skip", name)
	}
}

// Cases returns every case.
func Cases() []Case {
	var all []Case
	for _, group := range [][]Case{sessionCases(), timeCases(), listCases(), ttlCases(), explainCases(), censusCases(), sweepCases(), eventCases(), feedCases(), policyCases(), replayCases(), holdCases(), repairCases()} {
		all = append(all, group...)
	}
	return all
}

// policy returns the suite's policy: 6 units, extended 2 times by 4 when less
// than 5 are left; active for 2.
func (fx Fixture) policy(change ...func(*sessionv1.TTLPolicy)) *sessionv1.TTLPolicy {
	u := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * fx.Unit) }
	p := &sessionv1.TTLPolicy{
		BaseTtl: u(6), Extension: u(4), MaxExtensions: proto.Int32(2), ExtendBelow: u(5), ActiveWindow: u(2), MinInterval: u(3),
	}
	for _, c := range change {
		c(p)
	}
	return lifetime.Resolve(p, lifetime.DefaultPolicy())
}

// long is a policy under which nothing happens during a case.
func long(p *sessionv1.TTLPolicy) {
	p.BaseTtl, p.ExtendBelow = durationpb.New(1000*time.Hour), durationpb.New(time.Second)
}

// fresh builds a session as the service would.
func (fx Fixture) fresh(project, user, request string, policy *sessionv1.TTLPolicy) *sessionv1.Session {
	now := fx.Now().UnixMilli()
	return &sessionv1.Session{
		Id: sessionid.New(sessionid.ShardOf(project, user, request, Shards)), User: user, Project: project, Revision: 1,
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
		ExpireTime: lifetime.Time(lifetime.Deadline(now, policy)), CapTime: lifetime.Time(lifetime.NewTerms(now, policy).Cap),
		TtlPolicy: policy,
	}
}

// create stores a session and returns its id.
func (fx Fixture) create(t TB, project, user string, change ...func(*sessionv1.TTLPolicy)) string {
	t.Helper()
	s, _, err := fx.Store.Create(t.Context(), fx.fresh(project, user, "", fx.policy(change...)), "")
	ok(t, err)
	return s.GetId()
}

func (fx Fixture) get(t TB, id string) *sessionv1.Session {
	t.Helper()
	s, err := fx.Store.Get(t.Context(), id)
	ok(t, err)
	return s
}

// sweep sweeps and returns what was done.
func (fx Fixture) sweep(t TB) storage.SweepResult {
	t.Helper()
	r, err := fx.Store.Sweep(t.Context())
	ok(t, err)
	return r
}

// pass lets n units pass.
func (fx Fixture) pass(n float64) { fx.Advance(time.Duration(n * float64(fx.Unit))) }

// event builds an event as the service would.
func (fx Fixture) event(id, typ string) *sessionv1.Event {
	return &sessionv1.Event{Id: id, Type: typ, Source: "test", Time: timestamppb.New(fx.Now()), Origin: sessionv1.Event_USER}
}

// append appends events named by their ids.
func (fx Fixture) append(t TB, session string, ids ...string) []string {
	t.Helper()
	var events []*sessionv1.Event
	for _, id := range ids {
		events = append(events, fx.event(id, "input:text"))
	}
	cursors, err := fx.Store.Append(t.Context(), session, events)
	ok(t, err)
	return cursors
}

// extend reports one activity.
func (fx Fixture) extend(t TB, id, eventID string, at time.Time) *sessionv1.ExtendTTLResponse {
	t.Helper()
	res, err := fx.Store.Extend(t.Context(), []storage.Activity{{SessionID: id, Time: at, Kind: "input", EventID: eventID}})
	ok(t, err)
	ok(t, res[0].Err)
	return res[0].Response
}

// types lists the types in a session's log.
func (fx Fixture) types(t TB, id string) []string {
	t.Helper()
	p, err := fx.Store.ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 1000})
	ok(t, err)
	var out []string
	for _, e := range p.Events {
		out = append(out, e.GetType())
	}
	return out
}

func count(list []string, what string) int {
	n := 0
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

func ok(t TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

func equal[V comparable](t TB, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func same(t TB, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s:\ngot  %v\nwant %v", what, got, want)
	}
}

func list(t TB, what string, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
