//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

const (
	upgradeSeeds = 240
	upgradeOwn   = 25 // seeds of each client
	upgradePace  = 15 * time.Millisecond
	keptSessions = 12
)

// prepare creates the sessions and the clients of the load. Those of home call A
// and go on in an outage; those of shared call both replicas in turn, so that both
// versions change each of their sessions.
func (u *upgrade) prepare(t *testing.T) {
	t.Helper()
	u.seeds = u.load.seed(t, upgradeSeeds)
	newClient := func(name string, pick func(u *upgrade) *upgradeReplica) *slotClient {
		c := newSlotClient(u.load, name, u.seeds[:upgradeOwn])
		u.seeds = u.seeds[upgradeOwn:]
		c.store = u.client(pick)
		return c
	}
	for i := range 3 {
		u.home = append(u.home, newClient(fmt.Sprint("home-", i), first(0)))
		u.shared = append(u.shared, newClient(fmt.Sprint("shared-", i), alternate()))
	}
	u.cross = &crossClient{slotClient: newClient("cross", alternate()), u: u, repeated: map[string]int{}, updated: map[string]int{}, refused: map[string]int{}}
	u.kept = &writer{ledger: u.load.ledger, store: u.client(first(0)), user: "kept"}
	for range keptSessions {
		u.kept.mine = append(u.kept.mine, u.kept.createAs(t.Context(), &sessionv1.CreateSessionRequest{User: u.kept.user, TtlPolicy: &sessionv1.TTLPolicy{
			BaseTtl: durationpb.New(10 * time.Second), Extension: durationpb.New(6 * time.Second), ExtendBelow: durationpb.New(6 * time.Second),
			// So many that its limit is later than that of sessions that fall due.
			MaxExtensions: proto.Int32(3000),
		}}))
	}
}

// startLoad lets the clients call until stop is called.
func (u *upgrade) startLoad() (stop func()) {
	done := make(chan struct{})
	var calling sync.WaitGroup
	gated := func(step func(ctx context.Context)) {
		calling.Go(func() {
			paceEvery(done, upgradePace, func(context.Context) {
				u.gate.RLock()
				defer u.gate.RUnlock()
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				step(ctx)
			})
		})
	}
	for _, c := range u.home {
		calling.Go(func() { paceEvery(done, upgradePace, c.step) })
	}
	for _, c := range u.shared {
		gated(c.step)
	}
	gated(u.cross.step)
	for range 2 {
		gated(func(ctx context.Context) { u.load.readStep(ctx, u.seeds) })
	}
	calling.Go(func() {
		paceEvery(done, 500*time.Millisecond/keptSessions, func(ctx context.Context) {
			u.kept.n++
			u.kept.event(ctx, u.kept.mine[u.kept.n%keptSessions])
		})
	})
	return func() {
		close(done)
		calling.Wait()
	}
}

// crossClient makes pairs of calls of which one goes to each version, and counts
// them by the order of the versions.
type crossClient struct {
	*slotClient
	u        *upgrade
	requests []crossRequest
	// repeated are creations that another version repeated, updated and refused are
	// updates with the current and with an older etag as another version read it.
	repeated, updated, refused map[string]int
}

// crossRequest is a request id with the session that a version has created.
type crossRequest struct {
	id, session string
	by          version
}

func (c *crossClient) step(ctx context.Context) {
	c.n++
	switch rand.IntN(5) {
	case 0:
		c.createUnder(ctx)
	case 1, 2:
		c.repeatOne(ctx)
	default:
		c.updateAcross(ctx)
	}
}

// at makes the next calls go to a replica, and returns its version.
func (c *crossClient) at(r *upgradeReplica) version {
	c.store = c.u.client(func(*upgrade) *upgradeReplica { return r })
	return r.runs()
}

// either returns the replicas in random order, where both are up.
func (c *crossClient) either() (one, other *upgradeReplica) {
	one, other = c.u.a, c.u.b
	if rand.IntN(2) == 0 {
		one, other = other, one
	}
	if !one.up.Load() || !other.up.Load() {
		return nil, nil
	}
	return one, other
}

func (c *crossClient) request(id string) *sessionv1.CreateSessionRequest {
	return &sessionv1.CreateSessionRequest{
		User: c.user, Project: c.project, RequestId: id,
		// One use extends it: whichever version does moves the expiry of its keys.
		TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL), Extension: durationpb.New(time.Hour), ExtendBelow: durationpb.New(faultTTL), MaxExtensions: proto.Int32(2)},
	}
}

// createUnder creates a session under a request id, and has the other version
// extend it.
func (c *crossClient) createUnder(ctx context.Context) {
	one, other := c.either()
	if one == nil || len(c.requests) > 60 {
		return
	}
	q := crossRequest{id: fmt.Sprintf("cross-%d", c.n), by: c.at(one)}
	if q.session = c.createAs(ctx, c.request(q.id)); q.session == "" {
		return
	}
	c.requests = append(c.requests, q)
	c.at(other)
	// Within the millisecond of its creation, so much as extend_below is left.
	time.Sleep(2 * time.Millisecond)
	before := c.of(q.session)
	var r *sessionv1.ExtendTTLResponse
	err := c.send("ExtendTTL", q.session, func(h grpc.CallOption) (err error) {
		r, err = c.store.ExtendTTL(ctx, &sessionv1.ExtendTTLRequest{Id: q.session, ActivityKind: "input"}, h)
		return err
	})
	c.judge("ExtendTTL", q.session, err)
	if err != nil {
		return
	}
	c.judgeExtension("ExtendTTL", q.session, before, r)
	if r.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		c.fault("ExtendTTL of %s, which was just created: outcome %v", q.session, r.GetOutcome())
	}
}

// repeatOne repeats a creation at a replica of the version that did not make it.
func (c *crossClient) repeatOne(ctx context.Context) {
	one, other := c.either()
	if one == nil || len(c.requests) == 0 {
		return
	}
	i := rand.IntN(len(c.requests))
	q := c.requests[i]
	if one.runs() == q.by {
		one = other
	}
	v := c.at(one)
	if v == q.by {
		return // there is no replica of the other version now
	}
	var s *sessionv1.Session
	if !c.call("CreateSession repeated", "", func(h grpc.CallOption) (err error) {
		s, err = c.store.CreateSession(ctx, c.request(q.id), h)
		return err
	}) {
		return
	}
	if s.GetId() != q.session {
		c.fault("the request id %s has made %s with the %s version and %s with the %s one", q.id, q.session, q.by, s.GetId(), v)
	}
	c.repeated[fmt.Sprint(q.by, " then ", v)]++
	if c.n%3 == 0 { // the others are repeated again, also in a later phase
		c.requests = append(c.requests[:i], c.requests[i+1:]...)
	}
}

// updateAcross reads a session from one replica and updates it at the other, with
// the etag that was read or an older one.
func (c *crossClient) updateAcross(ctx context.Context) {
	one, other := c.either()
	if one == nil {
		return
	}
	read, id := c.at(one), c.longLived()
	s, err := c.store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id})
	c.judge("GetSession", id, err)
	if err != nil {
		return
	}
	c.check(c.of(id), id, s, nil, false)
	revision, old := s.GetRevision(), s.GetRevision() > 1 && c.n%3 == 0
	if old {
		revision--
	} else {
		c.set(id, func(s *told) { s.tried = c.n })
	}
	pair := fmt.Sprint(read, " then ", c.at(other))
	err = c.send("UpdateSession across", id, func(h grpc.CallOption) error {
		_, err := c.store.UpdateSession(ctx, &sessionv1.UpdateSessionRequest{
			Id: id, Session: &sessionv1.Session{Labels: map[string]string{"n": strconv.Itoa(c.n)}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.n"}}, Etag: strconv.FormatInt(revision, 10),
		}, h)
		return err
	})
	switch code := status.Code(err); {
	case code == codes.Unavailable:
	case code == codes.Aborted && old:
		c.refused[pair]++
	case code == codes.OK && !old:
		c.set(id, func(s *told) { s.label = c.n })
		c.updated[pair]++
	default:
		c.fault("UpdateSession of %s, %s, with an etag that is old: %v: %v", id, pair, old, err)
	}
}

// checkKept makes sure that no session that was used has expired, and that the
// activity services have extended them.
func (u *upgrade) checkKept(t *testing.T, least int) {
	t.Helper()
	if n := checkCauses(t, u.load.store, u.kept.mine); n < least {
		t.Errorf("%d extensions of %d sessions in use, want %d or more", n, keptSessions, least)
	} else {
		t.Logf("%d sessions in use have lived on by %d extensions", keptSessions, n)
	}
}

// createWith creates sessions with request ids at a replica.
func (u *upgrade) createWith(t *testing.T, r *upgradeReplica, n int, name string) {
	t.Helper()
	parallel(t, n, func(ctx context.Context, i int) error {
		s, err := r.store().CreateSession(ctx, &sessionv1.CreateSessionRequest{
			User: name, RequestId: fmt.Sprint(name, "-", i), TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
		})
		if err != nil {
			return err
		}
		if s.GetEndTime() != nil {
			return errors.New("a new session is over")
		}
		u.load.add(s)
		return nil
	})
}
