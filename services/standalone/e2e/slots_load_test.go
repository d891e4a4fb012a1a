//go:build e2e

package e2e

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// slotLoad is what clients know of a store whose slots move, and what became of
// their calls.
type slotLoad struct {
	*ledger
	store, peer sessionv1.StorageServiceClient

	counting sync.Mutex
	// byOp are all calls, and those of the current phase.
	total, phase map[string]*opCount
	// downSince and longest are the outages of each shard, as its callers see them:
	// from a call that is UNAVAILABLE to the next one that Redis serves.
	downSince map[int]time.Time
	longest   time.Duration
	journaled int

	feed feedLog
	// group is the consumer group that reads the feed.
	group    string
	reported map[string]bool
}

// opCount counts the calls of one operation by their outcome.
type opCount struct{ ok, unavailable, other int }

func newSlotLoad(store, peer sessionv1.StorageServiceClient) *slotLoad {
	l := &slotLoad{
		store: store, peer: peer, group: "activity",
		total: map[string]*opCount{}, phase: map[string]*opCount{}, downSince: map[int]time.Time{},
		feed: feedLog{seen: map[string]bool{}, events: map[string]map[string]int{}}, reported: map[string]bool{},
	}
	l.ledger = newLedger(l.count)
	return l
}

// count records the outcome of a call, and holds every UNAVAILABLE to its promise
// of a delay.
func (l *slotLoad) count(c faultCall, err error) {
	code := status.Code(err)
	if code == codes.Unavailable && !hasRetryDelay(status.Convert(err)) {
		l.fault("%s is UNAVAILABLE without RetryInfo: %v", c.op, err)
	}
	l.counting.Lock()
	defer l.counting.Unlock()
	for _, in := range []map[string]*opCount{l.total, l.phase} {
		if in[c.op] == nil {
			in[c.op] = &opCount{}
		}
		switch code {
		case codes.OK:
			in[c.op].ok++
		case codes.Unavailable:
			in[c.op].unavailable++
		default:
			in[c.op].other++
		}
	}
	if c.journaled {
		l.journaled++
	}
	if c.id == "" {
		return
	}
	shard := shardOf(c.id)
	since, down := l.downSince[shard]
	switch {
	case code == codes.Unavailable && !down:
		l.downSince[shard] = c.begin
	case code != codes.Unavailable && down && !c.stale && !c.journaled && c.begin.After(since):
		l.longest = max(l.longest, time.Since(since))
		delete(l.downSince, shard)
	}
}

// startPhase begins to count anew, and returns the counts of the phase before.
func (l *slotLoad) startPhase() map[string]*opCount {
	l.counting.Lock()
	defer l.counting.Unlock()
	was := l.phase
	l.phase = map[string]*opCount{}
	return was
}

// figures describes calls in one line.
func figures(counts map[string]*opCount) string {
	var sum opCount
	var ops []string
	for _, op := range slices.Sorted(maps.Keys(counts)) {
		c := counts[op]
		sum.ok, sum.unavailable, sum.other = sum.ok+c.ok, sum.unavailable+c.unavailable, sum.other+c.other
		ops = append(ops, fmt.Sprintf("%s %d/%d/%d", op, c.ok, c.unavailable, c.other))
	}
	all := sum.ok + sum.unavailable + sum.other
	return fmt.Sprintf("%d calls, %d UNAVAILABLE (%.2f %%), %d other errors; OK/UNAVAILABLE/other: %s",
		all, sum.unavailable, 100*float64(sum.unavailable)/float64(max(1, all)), sum.other, strings.Join(ops, ", "))
}

func hasRetryDelay(s *status.Status) bool {
	for _, d := range s.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok && r.GetRetryDelay().AsDuration() > 0 {
			return true
		}
	}
	return false
}

// shardOf reads the shard out of a session's id: its first two bytes.
func shardOf(id string) int {
	raw, err := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).DecodeString(id[:min(len(id), 8)])
	if err != nil || len(raw) < 2 {
		return -1
	}
	return int(raw[0])<<8 | int(raw[1])
}

// livingIn returns the sessions that must be live now and match.
func (l *ledger) livingIn(match func(s *told) bool) map[string]told {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]told{}
	for id, s := range l.told {
		if s.lives() && match(s) {
			out[id] = *s
		}
	}
	return out
}

// judge holds the error of a call to what is known of its session after it: one
// that lives is never missing or over.
func (l *ledger) judge(op, id string, err error) {
	after := l.of(id)
	switch c := status.Code(err); {
	case c == codes.OK || c == codes.Unavailable:
	case c == codes.NotFound && after.deleting:
	case c == codes.FailedPrecondition && (after.ending || after.deleting || after.due()):
	default:
		l.fault("%s of %s, which lives: %v: %v", op, id, after.lives(), err)
	}
}

var names = regexp.MustCompile(`[a-z2-7]{29}|\d+`)

// report fails the test with what is wrong and was not reported before, by kind.
func (l *slotLoad) report(t *testing.T, when string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	kinds, example := map[string]int{}, map[string]string{}
	for _, w := range l.wrong {
		if l.reported[w] {
			continue
		}
		l.reported[w] = true
		k := names.ReplaceAllString(w, "#")
		kinds[k]++
		example[k] = w
	}
	for _, k := range slices.SortedFunc(maps.Keys(kinds), func(a, b string) int { return kinds[b] - kinds[a] }) {
		t.Errorf("%s: %d times: %s", when, kinds[k], example[k])
	}
	l.wrong = nil
}

// feedLog is what a consumer of the feed has received, each entry once.
type feedLog struct {
	mu   sync.Mutex
	seen map[string]bool
	// events are the events of each session by type and, for those that clients
	// append, by id.
	events map[string]map[string]int
}

func (f *feedLog) add(e *sessionv1.FeedEntry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	place := fmt.Sprint(e.GetShard(), "/", e.GetCursor())
	if f.seen[place] {
		return // at least once
	}
	f.seen[place] = true
	of := f.events[e.GetSessionId()]
	if of == nil {
		of = map[string]int{}
		f.events[e.GetSessionId()] = of
	}
	of[feedName(e.GetEvent())]++
}

// awaitQuiet waits until the consumer has received nothing new for a while.
func (f *feedLog) awaitQuiet(t *testing.T) {
	t.Helper()
	last, since := -1, time.Now()
	eventually(t, 20*time.Second, "the feed is read", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := len(f.seen); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
}

// feedName names an event: lifecycle events by their type alone.
func feedName(e *sessionv1.Event) string {
	if strings.HasPrefix(e.GetType(), "session:") {
		return e.GetType()
	}
	return e.GetType() + " " + e.GetId()
}

// consumeFeed reads the feed as the consumer group until ctx ends. A stream may
// break with UNAVAILABLE only, and is opened again. It ends with OK where its
// consumer seems to read elsewhere: a failover can bring back the lease of the
// stream before.
func (l *slotLoad) consumeFeed(ctx context.Context) {
	for ctx.Err() == nil {
		begin := time.Now()
		err := l.consumeOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		l.count(faultCall{op: "Feed", begin: begin}, err)
		if status.Code(err) != codes.Unavailable && !errors.Is(err, io.EOF) {
			l.fault("the feed ended: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (l *slotLoad) consumeOnce(ctx context.Context) error {
	stream, err := l.store.Feed(ctx)
	if err != nil {
		return err
	}
	// Of an error in Send, Recv returns the cause.
	_ = stream.Send(&sessionv1.FeedRequest{Open: &sessionv1.FeedRequest_Open{Group: l.group, Consumer: "one"}, Credits: 10_000})
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		l.count(faultCall{op: "Feed"}, nil)
		acks := map[int32]string{}
		for _, e := range m.GetEntries() {
			l.feed.add(e)
			acks[e.GetShard()] = e.GetCursor()
		}
		req := &sessionv1.FeedRequest{Credits: int32(len(m.GetEntries()))}
		for shard, cursor := range acks {
			req.Acks = append(req.Acks, &sessionv1.FeedRequest_Ack{Shard: shard, Cursor: cursor})
		}
		if len(acks) > 0 {
			_ = stream.Send(req)
		}
	}
}

// watch reads the events of a live session until ctx ends, and returns their ids
// in order. The stream may break with UNAVAILABLE only, and is resumed.
func (l *slotLoad) watch(ctx context.Context, id string) (got []string, truncated bool) {
	cursor := "0"
	for ctx.Err() == nil {
		err := func() error {
			stream, err := l.store.WatchEvents(ctx, &sessionv1.WatchEventsRequest{Id: id, After: &cursor})
			for err == nil {
				var m *sessionv1.WatchEventsResponse
				if m, err = stream.Recv(); err != nil {
					break
				}
				truncated = truncated || m.GetTruncated()
				if e := m.GetEvent(); e != nil {
					l.count(faultCall{op: "WatchEvents"}, nil)
					got = append(got, e.GetId())
				}
				if c := m.GetCursor(); c != "" {
					cursor = c
				}
			}
			return err
		}()
		if ctx.Err() != nil {
			break
		}
		l.count(faultCall{op: "WatchEvents"}, err)
		if status.Code(err) != codes.Unavailable {
			l.fault("the watch of %s, which lives, ended: %v", id, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return got, truncated
}

// startFeed consumes the feed until the test ends: sessions expire only after it has read the feed that far.
func (l *slotLoad) startFeed(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	reading.Go(func() { l.consumeFeed(ctx) })
	t.Cleanup(func() {
		cancel()
		reading.Wait()
	})
}

// seed creates n long-lived sessions: several for each user, some anonymous, in a
// few projects. It returns their ids.
func (l *slotLoad) seed(t *testing.T, n int) []string {
	t.Helper()
	ids := make([]string, n)
	parallel(t, n, func(ctx context.Context, i int) error {
		s, err := l.store.CreateSession(ctx, seedRequest(i))
		if err != nil {
			return err
		}
		if s.GetPhase() != sessionv1.Session_ACTIVE {
			return errors.New("a new session is not active")
		}
		l.add(s)
		ids[i] = s.GetId()
		return nil
	})
	return ids
}

func seedRequest(i int) *sessionv1.CreateSessionRequest {
	req := &sessionv1.CreateSessionRequest{
		User: fmt.Sprint("user-", i/4), Project: seedProject(i / 4),
		Labels:    map[string]string{"kind": "seed", "number": fmt.Sprint(i)},
		TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(faultTTL)},
	}
	if i%10 == 0 {
		req.User = "" // anonymous
	}
	return req
}

// seedProject is the project of a user of the seed.
func seedProject(user int) string { return fmt.Sprint("project-", user%12) }
