//go:build e2e

package e2e

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// read makes one call that reads, records how it went, and reports whether the
// response is marked as one that may be old.
func (l *slotLoad) read(op, id string, do func(h grpc.CallOption) error) (stale bool, err error) {
	begin := time.Now()
	var h metadata.MD
	err = do(grpc.Header(&h))
	stale = len(h.Get("stoker-served-by")) > 0
	l.count(faultCall{op: op, id: id, begin: begin, stale: stale}, err)
	return stale, err
}

// judgeItem is judge for the error of one item of a batch.
func (l *slotLoad) judgeItem(op, id string, e *rpcstatus.Status) {
	s := status.FromProto(e)
	if s.Code() == codes.Unavailable && !hasRetryDelay(s) {
		l.fault("an item of %s is UNAVAILABLE without RetryInfo: %v", op, s.Err())
	}
	l.judge(op, id, s.Err())
}

// get reads a session from a replica.
func (l *slotLoad) get(ctx context.Context, store sessionv1.StorageServiceClient, id string) {
	before := l.of(id)
	var s *sessionv1.Session
	stale, err := l.read("GetSession", id, func(h grpc.CallOption) (err error) {
		s, err = store.GetSession(ctx, &sessionv1.GetSessionRequest{Id: id}, h)
		return err
	})
	l.judge("GetSession", id, err)
	l.check(before, id, s, err, stale)
}

func (l *slotLoad) batchGet(ctx context.Context, ids []string) {
	before := map[string]told{}
	for _, id := range ids {
		before[id] = l.of(id)
	}
	var resp *sessionv1.BatchGetSessionsResponse
	stale, err := l.read("BatchGetSessions", "", func(h grpc.CallOption) (err error) {
		resp, err = l.store.BatchGetSessions(ctx, &sessionv1.BatchGetSessionsRequest{Ids: ids}, h)
		return err
	})
	if c := status.Code(err); c != codes.OK && c != codes.Unavailable {
		l.fault("BatchGetSessions: %v", err)
	}
	if err == nil && len(resp.GetResults()) != len(ids) {
		l.fault("BatchGetSessions returned %d of %d ids", len(resp.GetResults()), len(ids))
	}
	for _, r := range resp.GetResults() {
		if e := r.GetError(); e != nil {
			l.judgeItem("BatchGetSessions", r.GetId(), e)
		} else {
			l.check(before[r.GetId()], r.GetId(), r.GetSession(), nil, stale)
		}
	}
}

// getTTL reads a deadline, in one of two ways.
func (l *slotLoad) getTTL(ctx context.Context, id string, explain bool) {
	before, op := l.of(id), "GetTTL"
	if explain {
		op = "ExplainTTL"
	}
	var ttl *sessionv1.TTL
	stale, err := l.read(op, id, func(h grpc.CallOption) (err error) {
		if explain {
			var e *sessionv1.TTLExplanation
			e, err = l.store.ExplainTTL(ctx, &sessionv1.ExplainTTLRequest{Id: id}, h)
			ttl = e.GetTtl()
		} else {
			ttl, err = l.store.GetTTL(ctx, &sessionv1.GetTTLRequest{Id: id}, h)
		}
		return err
	})
	l.judge(op, id, err)
	if err != nil {
		return
	}
	after := l.of(id)
	over := ttl.GetPhase() == sessionv1.Session_ENDED || ttl.GetPhase() == sessionv1.Session_EXPIRED
	if over && after.lives() {
		l.fault("%s of %s, which lives: phase %v", op, id, ttl.GetPhase())
	}
	if d := ttl.GetExpireTime().AsTime(); !stale && !before.deleted && d.Before(before.deadline) {
		l.fault("%s of %s: the deadline is %v, want %v or later", op, id, d, before.deadline)
	}
}

// listEvents reads a session's log. What was acknowledged must be there, in order
// and once, unless the response is marked as incomplete.
func (l *slotLoad) listEvents(ctx context.Context, id string) {
	before, after, whole := l.of(id), "0", true
	var got []string
	for {
		var page *sessionv1.ListEventsResponse
		stale, err := l.read("ListEvents", id, func(h grpc.CallOption) (err error) {
			page, err = l.store.ListEvents(ctx, &sessionv1.ListEventsRequest{Id: id, After: &after, Limit: 1000}, h)
			return err
		})
		l.judge("ListEvents", id, err)
		if err != nil {
			return
		}
		whole = whole && !stale
		if page.GetTruncated() && !stale {
			l.fault("ListEvents of %s reports that events are gone", id)
		}
		for _, e := range page.GetEvents() {
			got = append(got, e.GetId())
		}
		if after = page.GetNextCursor(); page.GetPollAfter().AsDuration() > 0 || len(page.GetEvents()) == 0 {
			break
		}
	}
	if !whole || before.deleted {
		return
	}
	at := 0
	for _, e := range before.events {
		i := slices.Index(got[at:], e)
		if i < 0 {
			l.fault("ListEvents of %s lacks the event %s, or has it out of order, among %d", id, e, len(got))
			return
		}
		at += i + 1
	}
}

// list pages through the sessions of a user or a project: those that live
// throughout must be there once, and none that was over before.
func (l *slotLoad) list(ctx context.Context, user, project string) {
	l.mu.Lock()
	over := map[string]bool{}
	for id, s := range l.told {
		if s.ended || s.deleted {
			over[id] = true
		}
	}
	l.mu.Unlock()
	want := l.livingIn(func(s *told) bool { return s.project == project && (user == "" || s.user == user) })
	op, got := "ListSessions by project", map[string]bool{}
	if user != "" {
		op = "ListSessions by user"
	}
	for token := ""; ; {
		var page *sessionv1.ListSessionsResponse
		_, err := l.read(op, "", func(h grpc.CallOption) (err error) {
			page, err = l.store.ListSessions(ctx, &sessionv1.ListSessionsRequest{User: user, Project: project, PageSize: 200, PageToken: token}, h)
			return err
		})
		if err != nil {
			if status.Code(err) != codes.Unavailable {
				l.fault("%s: %v", op, err)
			}
			return
		}
		for _, s := range page.GetSessions() {
			if got[s.GetId()] {
				l.fault("%s lists %s twice", op, s.GetId())
			}
			if got[s.GetId()] = true; over[s.GetId()] {
				l.fault("%s lists %s, which is over", op, s.GetId())
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	for id := range want {
		if !got[id] && l.of(id).lives() {
			l.fault("%s lacks %s, which lives", op, id)
		}
	}
}

// activeUsers pages through the active users of a project, each of whom has at
// least as many sessions as live throughout.
func (l *slotLoad) activeUsers(ctx context.Context, project string) {
	const op = "ListActiveUsers"
	want := l.livingIn(func(s *told) bool { return s.project == project && s.user != "" })
	got := map[string]int{}
	for token := ""; ; {
		var page *sessionv1.ListActiveUsersResponse
		_, err := l.read(op, "", func(h grpc.CallOption) (err error) {
			page, err = l.store.ListActiveUsers(ctx, &sessionv1.ListActiveUsersRequest{Project: project, PageSize: 200, PageToken: token}, h)
			return err
		})
		if err != nil {
			if status.Code(err) != codes.Unavailable {
				l.fault("%s: %v", op, err)
			}
			return
		}
		for _, u := range page.GetUsers() {
			got[u.GetUser()] += int(u.GetSessionCount())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	least := map[string]int{}
	for id, s := range want {
		if l.of(id).lives() {
			least[s.user]++
		}
	}
	for user, n := range least {
		if got[user] < n {
			l.fault("%s has %d sessions of %s, want %d or more", op, got[user], user, n)
		}
	}
}

// getPolicy reads the client's own policy, once it has set one.
func (c *slotClient) getPolicy(ctx context.Context) {
	if c.policy == 0 {
		return
	}
	var p *sessionv1.ProjectPolicy
	stale, err := c.load.read("GetPolicy", "", func(h grpc.CallOption) (err error) {
		p, err = c.store.GetPolicy(ctx, &sessionv1.GetPolicyRequest{Project: c.project}, h)
		return err
	})
	got := p.GetPolicy().GetBaseTtl().GetSeconds()
	switch {
	case status.Code(err) == codes.Unavailable:
	case err != nil:
		c.fault("GetPolicy of a project that has one: %v", err)
	case got > c.policyTried || !stale && got < c.policy:
		c.fault("GetPolicy: base_ttl is %d s, want %d to %d", got, c.policy, c.policyTried)
	}
}

// slotReads are the operations that read, with how often a load calls each; id is
// any session, seeds are long-lived ones that nobody changes: the other replica
// does not know the pending writes in the journal of the first.
var slotReads = []struct {
	op     string
	weight int
	run    func(l *slotLoad, ctx context.Context, id string, seeds []string)
}{
	{"GetSession", 12, func(l *slotLoad, ctx context.Context, id string, _ []string) { l.get(ctx, l.store, id) }},
	{"GetSession of the other replica", 6, func(l *slotLoad, ctx context.Context, _ string, seeds []string) {
		l.get(ctx, l.peer, seeds[rand.IntN(len(seeds))])
	}},
	{"BatchGetSessions", 4, func(l *slotLoad, ctx context.Context, id string, seeds []string) {
		l.batchGet(ctx, []string{id, seeds[rand.IntN(len(seeds))], seeds[0]})
	}},
	{"GetTTL", 6, func(l *slotLoad, ctx context.Context, id string, _ []string) { l.getTTL(ctx, id, false) }},
	{"ExplainTTL", 2, func(l *slotLoad, ctx context.Context, id string, _ []string) { l.getTTL(ctx, id, true) }},
	{"ListEvents", 6, func(l *slotLoad, ctx context.Context, id string, _ []string) { l.listEvents(ctx, id) }},
	{"ListSessions by user", 3, func(l *slotLoad, ctx context.Context, id string, _ []string) {
		if s := l.of(id); s.user != "" {
			l.list(ctx, s.user, s.project)
		}
	}},
	{"ListSessions by project", 1, func(l *slotLoad, ctx context.Context, _ string, seeds []string) {
		l.list(ctx, "", l.of(seeds[rand.IntN(len(seeds))]).project)
	}},
	{"ListActiveUsers", 1, func(l *slotLoad, ctx context.Context, _ string, seeds []string) {
		l.activeUsers(ctx, l.of(seeds[rand.IntN(len(seeds))]).project)
	}},
}

// readStep runs the next read, drawn by weight.
func (l *slotLoad) readStep(ctx context.Context, seeds []string) {
	all := 0
	for _, o := range slotReads {
		all += o.weight
	}
	at := rand.IntN(all)
	for _, o := range slotReads {
		if at -= o.weight; at < 0 {
			o.run(l, ctx, l.pick(), seeds)
			return
		}
	}
}
