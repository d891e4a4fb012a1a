//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// slotClient calls operations that change sessions, all of its own, so that each
// response can be judged at once. The long-lived ones are in mine.
type slotClient struct {
	*writer
	load    *slotLoad
	project string
	// spare are to be ended or deleted, due expire soon and can be extended, by
	// extension at a time.
	spare, due []string
	extension  time.Duration
	// request is the request id in use, made the session that it has created.
	request, made string
	// revoked is the user whose sessions are to be revoked, revoking these; unsure
	// is set once the outcome of one of that user's calls is unknown.
	revoked  string
	revoking []string
	unsure   int
	// policy and policyTried are the seconds of base_ttl of the project's policy.
	policy, policyTried int64
}

func newSlotClient(l *slotLoad, name string, mine []string) *slotClient {
	return &slotClient{
		writer: &writer{ledger: l.ledger, store: l.store, user: name, mine: mine},
		load:   l, project: "of-" + name, extension: 2 * time.Second,
	}
}

// slotChanges are the operations that change something, with how often a load
// calls each.
var slotChanges = []struct {
	op     string
	weight int
	run    func(c *slotClient, ctx context.Context)
}{
	{"AppendEvents", 10, (*slotClient).appendEvent},
	{"UpdateSession", 4, (*slotClient).updateOne},
	{"UpdateSession with etag", 3, (*slotClient).updateIf},
	{"CreateSession", 2, (*slotClient).createLong},
	{"CreateSession with requestId", 2, (*slotClient).createOnce},
	{"CreateSession due soon", 3, (*slotClient).createDue},
	{"EndSession", 2, (*slotClient).endOne},
	{"DeleteSession", 1, (*slotClient).deleteOne},
	{"ExtendTTL", 4, (*slotClient).extendOne},
	{"BatchExtendTTL", 2, (*slotClient).extendMany},
	{"RevokeUserSessions", 3, (*slotClient).revokeUser},
	{"SetPolicy", 1, (*slotClient).setPolicy},
}

// step runs the next change, drawn by weight.
func (c *slotClient) step(ctx context.Context) {
	c.n++
	all := 0
	for _, o := range slotChanges {
		all += o.weight
	}
	at := rand.IntN(all)
	for _, o := range slotChanges {
		if at -= o.weight; at < 0 {
			o.run(c, ctx)
			return
		}
	}
}

// longLived draws one of the client's sessions, the first more often than others.
func (c *slotClient) longLived() string { return c.mine[max(0, rand.IntN(len(c.mine)+5)-5)] }

func (c *slotClient) appendEvent(ctx context.Context) { c.event(ctx, c.longLived()) }

func (c *slotClient) updateOne(ctx context.Context) { c.update(ctx, c.longLived()) }

// updateIf updates with the etag as just read, which must fit, or with an older
// one, which must not.
func (c *slotClient) updateIf(ctx context.Context) {
	id := c.longLived()
	var s *sessionv1.Session
	stale, err := c.load.read("GetSession", id, func(h grpc.CallOption) (err error) {
		s, err = c.store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id}, h)
		return err
	})
	c.judge("GetSession", id, err)
	if err != nil || stale {
		return
	}
	revision, old := s.GetRevision(), s.GetRevision() > 1 && c.n%2 == 0
	if old {
		revision--
	} else {
		c.set(id, func(s *told) { s.tried = c.n })
	}
	err = c.send("UpdateSession", id, func(h grpc.CallOption) error {
		_, err := c.store.UpdateSession(ctx, &sessionv1.UpdateSessionRequest{
			Id: id, Session: &sessionv1.Session{Labels: map[string]string{"n": strconv.Itoa(c.n)}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.n"}}, Etag: strconv.FormatInt(revision, 10),
		}, h)
		return err
	})
	switch code := status.Code(err); {
	case code == codes.Unavailable, old && code == codes.Aborted:
	case code == codes.OK && !old:
		c.set(id, func(s *told) { s.label = c.n })
	default:
		c.fault("UpdateSession of %s with an etag that is old: %v: %v", id, old, err)
	}
}

func (c *slotClient) createLong(ctx context.Context) {
	req := &sessionv1.CreateSessionRequest{
		User: c.user, Project: c.project, Labels: map[string]string{"kind": "load"},
		TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
	}
	if c.n%4 == 0 {
		req.User = "" // anonymous, on any shard
	}
	if id := c.createAs(ctx, req); id != "" {
		c.spare = append(c.spare, id)
	}
}

// createOnce creates a session under a request id, and the next time repeats the
// request: until its outcome is known, and then once more.
func (c *slotClient) createOnce(ctx context.Context) {
	if c.request == "" {
		c.request = fmt.Sprintf("%s-%d", c.user, c.n)
	}
	var s *sessionv1.Session
	if !c.call("CreateSession with requestId", "", func(h grpc.CallOption) (err error) {
		s, err = c.store.CreateSession(ctx, &sessionv1.CreateSessionRequest{
			User: c.user, Project: c.project, RequestId: c.request, TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
		}, h)
		return err
	}) {
		return
	}
	c.add(s)
	c.check(c.of(s.GetId()), s.GetId(), s, nil, true)
	switch c.made {
	case "":
		c.made = s.GetId()
		return
	case s.GetId():
	default:
		c.fault("one request id has made two sessions: %s and %s", c.made, s.GetId())
	}
	c.spare = append(c.spare, s.GetId())
	c.request, c.made = "", ""
}

// createDue creates a session that lives for about as long as an extension adds.
func (c *slotClient) createDue(ctx context.Context) {
	life := c.extension*3/4 + time.Duration(rand.Int64N(int64(c.extension)*5/4))
	id := c.createAs(ctx, &sessionv1.CreateSessionRequest{User: c.user, Project: c.project, TtlPolicy: &sessionv1.TTLPolicy{
		BaseTtl: durationpb.New(life), Extension: durationpb.New(c.extension), ExtendBelow: durationpb.New(life), MaxExtensions: proto.Int32(2),
	}})
	if id != "" {
		c.due = append(c.due, id)
	}
}

// takeSpare returns a session to be ended or deleted, empty where none could be
// created.
func (c *slotClient) takeSpare(ctx context.Context) string {
	if len(c.spare) == 0 {
		c.createLong(ctx)
	}
	if len(c.spare) == 0 {
		return ""
	}
	id := c.spare[0]
	c.spare = c.spare[1:]
	return id
}

func (c *slotClient) endOne(ctx context.Context) {
	if id := c.takeSpare(ctx); id != "" {
		c.end(ctx, id)
	}
}

func (c *slotClient) deleteOne(ctx context.Context) {
	if id := c.takeSpare(ctx); id != "" {
		c.remove(ctx, id)
	}
}

// extendOne reports activity in one of the sessions that expire soon, so that
// about half of them are extended, or in a long-lived one.
func (c *slotClient) extendOne(ctx context.Context) {
	id := c.nextDue()
	if id == "" || c.n%3 == 0 {
		id = c.longLived()
	}
	before := c.of(id)
	var r *sessionv1.ExtendTTLResponse
	err := c.send("ExtendTTL", id, func(h grpc.CallOption) (err error) {
		r, err = c.store.ExtendTTL(ctx, &sessionv1.ExtendTTLRequest{Id: id, ActivityKind: "input"}, h)
		return err
	})
	c.judge("ExtendTTL", id, err)
	if err == nil {
		c.judgeExtension("ExtendTTL", id, before, r)
	}
}

func (c *slotClient) nextDue() string {
	for len(c.due) > 20 || len(c.due) > 0 && c.of(c.due[0]).due() {
		c.due = c.due[1:]
	}
	if len(c.due) == 0 {
		return ""
	}
	return c.due[rand.IntN(len(c.due))]
}

func (c *slotClient) extendMany(ctx context.Context) {
	ids := []string{c.longLived()}
	for range 2 {
		if id := c.nextDue(); id != "" && id != ids[len(ids)-1] {
			ids = append(ids, id)
		}
	}
	req, before := &sessionv1.BatchExtendTTLRequest{}, map[string]told{}
	for _, id := range ids {
		req.Items = append(req.Items, &sessionv1.ExtendTTLRequest{Id: id, ActivityKind: "input"})
		before[id] = c.of(id)
	}
	var resp *sessionv1.BatchExtendTTLResponse
	if !c.call("BatchExtendTTL", "", func(h grpc.CallOption) (err error) {
		resp, err = c.store.BatchExtendTTL(ctx, req, h)
		return err
	}) {
		return
	}
	if len(resp.GetResults()) != len(req.GetItems()) {
		c.fault("BatchExtendTTL returned %d of %d items", len(resp.GetResults()), len(req.GetItems()))
	}
	for _, r := range resp.GetResults() {
		if e := r.GetError(); e != nil {
			c.load.judgeItem("BatchExtendTTL", r.GetId(), e)
		} else {
			c.judgeExtension("BatchExtendTTL", r.GetId(), before[r.GetId()], r.GetResponse())
		}
	}
}

// judgeExtension holds an outcome to what is known of the session, and records
// the deadline that it acknowledges.
func (c *slotClient) judgeExtension(op, id string, before told, r *sessionv1.ExtendTTLResponse) {
	after := c.of(id)
	switch o := r.GetOutcome(); o {
	case sessionv1.ExtendTTLResponse_ENDED, sessionv1.ExtendTTLResponse_TOO_LATE, sessionv1.ExtendTTLResponse_NOT_FOUND:
		if over := after.ending || after.deleting || after.due() && o != sessionv1.ExtendTTLResponse_NOT_FOUND; !over {
			c.fault("%s of %s, which lives: outcome %v", op, id, o)
		}
	default:
		deadline := r.GetAfter().GetExpireTime().AsTime()
		if deadline.Before(before.deadline) || deadline.After(before.limit) {
			c.fault("%s of %s: outcome %v with the deadline at %v, want between %v and %v", op, id, o, deadline, before.deadline, before.limit)
			return
		}
		c.set(id, func(s *told) { s.deadline = deadline })
	}
}

// revokeUser creates three sessions of a user, in as many calls, and then revokes
// them, until that is acknowledged.
func (c *slotClient) revokeUser(ctx context.Context) {
	if c.revoked == "" {
		c.revoked, c.revoking, c.unsure = fmt.Sprintf("revoked-%s-%d", c.user, c.n), nil, 0
	}
	if len(c.revoking)+c.unsure < 3 {
		if id := c.createAs(ctx, &sessionv1.CreateSessionRequest{
			User: c.revoked, Project: c.project, TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
		}); id != "" {
			c.revoking = append(c.revoking, id)
		} else {
			c.unsure++
		}
		return
	}
	c.revokeNow(ctx)
}

func (c *slotClient) revokeNow(ctx context.Context) {
	for _, id := range c.revoking {
		c.set(id, func(s *told) { s.ending = true })
	}
	var r *sessionv1.RevokeUserSessionsResponse
	if !c.call("RevokeUserSessions", "", func(h grpc.CallOption) (err error) {
		r, err = c.store.RevokeUserSessions(ctx, &sessionv1.RevokeUserSessionsRequest{User: c.revoked, Project: c.project, Reason: "done"}, h)
		return err
	}) {
		c.unsure++
		return
	}
	if n := int(r.GetCount()); c.unsure == 0 && n != len(c.revoking) || n > 3 {
		c.fault("RevokeUserSessions ended %d sessions of a user with %d; calls of unknown outcome: %d", n, len(c.revoking), c.unsure)
	}
	for _, id := range c.revoking {
		c.set(id, func(s *told) { s.ended = true })
	}
	c.revoked = ""
}

// setPolicy sets the project's policy, and reads it back.
func (c *slotClient) setPolicy(ctx context.Context) {
	c.policyTried = 10_000 + int64(c.n)
	if c.call("SetPolicy", "", func(h grpc.CallOption) error {
		_, err := c.store.SetPolicy(ctx, &sessionv1.SetPolicyRequest{
			Project: c.project, Policy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Duration(c.policyTried) * time.Second)},
		}, h)
		return err
	}) {
		c.policy = c.policyTried
	}
	c.getPolicy(ctx)
}
