// Package storage is the contract between the session store's handlers and its
// backends. Package storagetest holds a test for each *must* below.
//
// Messages that a backend returns belong to the caller only for reading: a
// backend may hand the same message to several callers, so neither side may
// change one after it was passed.
package storage

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
)

// Store is everything a backend does.
//
// Every method must honour its context's end and deadline. A method that
// cannot tell whether something exists must return ErrUnavailable, never
// ErrNotFound. All times are absolute, with millisecond resolution.
type Store interface {
	Sessions
	Index
	TTL
	Events
	Feed
	Policies
	Replay

	// Status must answer without waiting for longer than its context allows.
	Status(ctx context.Context) Status
	// Close must release what the store holds, end every waiting call with
	// ErrClosed, and make what was acknowledged durable. Closing twice must be
	// harmless.
	Close() error
}

// Status is the health of a backend.
type Status struct {
	// Backend is "memory" or "redis".
	Backend string
	// Shards is the number of shards, fixed for a deployment's life.
	Shards int
	// Err is nil when the backend answers.
	Err error
	// Durable says that acknowledged writes survive a crash of the process.
	Durable bool
	// Entries counts what is kept per session, index entries included; -1 where
	// the backend cannot tell cheaply.
	Entries int64
	// Format is the format of the data, empty where there is only one.
	Format string
	// Losses counts how often the backend was seen to have lost its data since
	// the start; LastLoss is when, zero for never.
	Losses   int64
	LastLoss time.Time
	// LossSpan is how far back the data had gone at LastLoss, 0 where that is not
	// known.
	LossSpan time.Duration
	// Warnings are what endangers data or deadlines now, by code and node; at most
	// MaxWarnings.
	Warnings []Warning
	// ClockDifference is by how much this process's clock is ahead of the backend's,
	// negative where it is behind; nil where it has not been measured.
	ClockDifference *time.Duration
}

// LossRecord remembers losses of data. It is safe for concurrent use.
type LossRecord struct {
	n, last, span atomic.Int64
}

// Add remembers one more, and how far back the data went; 0 where that is not known.
func (l *LossRecord) Add(at time.Time, span time.Duration) {
	l.n.Add(1)
	l.span.Store(int64(span))
	l.last.Store(at.UnixMilli())
}

// Widen changes how far back the data went at the last loss, where that is further
// than was known.
func (l *LossRecord) Widen(span time.Duration) {
	l.span.Store(max(l.span.Load(), int64(span)))
}

// Get returns how many there were, and when the last was.
func (l *LossRecord) Get() (n int64, last time.Time) {
	if ms := l.last.Load(); ms != 0 {
		last = time.UnixMilli(ms)
	}
	return l.n.Load(), last
}

// Span returns how far back the data went at the last one.
func (l *LossRecord) Span() time.Duration { return time.Duration(l.span.Load()) }

// Sessions creates, reads and changes single sessions.
type Sessions interface {
	// Create must store the session with the id and the policy it carries, revision
	// 1, created now by the clock that judges deadlines: all its times must be moved
	// by as much as its create_time is off. It must put it in every index, append
	// session:created to its log and to the feed, and return what it stored. The
	// same session id again is the same call, and must create nothing more. When
	// requestKey is not empty and was used before for the same project and user,
	// Create must change nothing and return the session made then with existed true,
	// for as long as that session is there (whatever its state).
	Create(ctx context.Context, s *sessionv1.Session, requestKey string) (stored *sessionv1.Session, existed bool, err error)
	// Get must return the session with its phase as of now, ErrNotFound when
	// there is none. A session past its deadline must read as EXPIRED even
	// before it is swept. Get must never change anything.
	Get(ctx context.Context, id string) (*sessionv1.Session, error)
	// GetMany must answer per id, in order; one id's error must not fail others.
	GetMany(ctx context.Context, ids []string) ([]SessionResult, error)
	// Update must change labels and data as the update says, and set update_time
	// and revision, in one atomic step. It must return ErrNotFound, ErrEnded
	// when the session is ended or past its deadline, ErrConflict when
	// IfRevision is not 0 and not the current revision, and an InvalidError for
	// labels when more than MaxLabels would be there after the change. An update
	// whose WriteID is among the last 8 of the session must change nothing and
	// return the session, whatever its revision and state.
	Update(ctx context.Context, id string, u Update) (*sessionv1.Session, error)
	// End must set the state to ENDED with end_time now and the reason, remove
	// the session from every live index, put it under retention, and append
	// session:ended to log and feed, all in one atomic step. Ending a session
	// that is over must change nothing and return it as it is.
	End(ctx context.Context, id, reason string) (*sessionv1.Session, error)
	// Delete must remove the session, its events, its request key and every
	// index entry in one atomic step, and append session:deleted to the feed.
	// It must return ErrNotFound when there is none.
	Delete(ctx context.Context, id string) error
}

// SessionResult is the answer for one id: a session or an error.
type SessionResult struct {
	Session *sessionv1.Session
	Err     error
}

// Index answers questions about many sessions.
type Index interface {
	// List must return live sessions (or, for phase ENDED and EXPIRED, those
	// under retention and those past their deadline) that match every filter
	// that is set, in an order that does not change while sessions come and go:
	// paging through must return each session that is there throughout exactly
	// once. It must return at most Limit; a page may be shorter, even empty,
	// with a Next token. An alien token must be an InvalidError for pageToken.
	List(ctx context.Context, q ListQuery) (SessionPage, error)
	// ActiveUsers must return the users with at least one live session before
	// its deadline, each once, with the same promises as List. Anonymous
	// sessions have no user.
	ActiveUsers(ctx context.Context, q ListQuery) (UserPage, error)
	// Census must count the sessions that are not over, without standing in the
	// way of other calls: it may take its time, and need not be of one moment.
	Census(ctx context.Context) (Census, error)
	// RevokeUser must end (as End does) every live session of the user in the
	// project but those in except, and return how many it ended. Where some
	// sessions cannot be reached it must end the others, and return both.
	RevokeUser(ctx context.Context, project, user string, except []string, reason string) (int, error)
	// Repair must compare every session's record with the entries that the indexes
	// have of it, put back what is missing, correct what is wrong, and take out
	// entries that no session is behind. It must change nothing where all agrees.
	// Sessions may come, go and change meanwhile. Where it cannot say that it has
	// looked at all that were there throughout, it must return ErrPartly.
	Repair(ctx context.Context, q RepairQuery) (RepairResult, error)
}

// Census counts sessions that are neither ended nor swept.
type Census struct {
	// ByPhase has no entry for a phase that no session is in.
	ByPhase map[sessionv1.Session_Phase]int64
	// AtCap are those that can get no further extension.
	AtCap int64
}

// ListQuery selects a page of sessions or users.
type ListQuery struct {
	// User and Project filter where not empty.
	User    string
	Project string
	// Phase filters where not unspecified.
	Phase sessionv1.Session_Phase
	// Limit is 1 to 1,000.
	Limit int
	// Token is empty for the first page.
	Token string
}

// SessionPage is a page of sessions; Next is empty on the last.
type SessionPage struct {
	Sessions []*sessionv1.Session
	Next     string
}

// UserPage is a page of users; Next is empty on the last.
type UserPage struct {
	Users []*sessionv1.ActiveUser
	Next  string
}

// TTL moves and enforces deadlines.
type TTL interface {
	// Extend must judge each activity by its own time with the session's frozen
	// policy, exactly as lifetime.Extend does, atomically per session, and
	// answer per item, in order. EXTENDED must append session:extended to log
	// and feed. The same item twice must never extend twice. A missing session
	// is the outcome NOT_FOUND; only a failing backend is an error, per item
	// where possible.
	Extend(ctx context.Context, items []Activity) ([]ExtendResult, error)
	// Explain must return what became of the latest reports of a session's
	// activity, refusals included, also of a session that is over, and
	// ErrNotFound when there is none. Every item of Extend that found a session
	// must be remembered, with the activities it stands for, but for one that is
	// the same as the item before. Those that moved the deadline or the last
	// activity must survive whatever the session does.
	Explain(ctx context.Context, id string) (Explanation, error)
	// Sweep must do what is due on every shard: append session:expiring once
	// per deadline when less than extend_below is left; expire sessions whose
	// deadline has passed (state EXPIRED, out of every live index, under
	// retention, session:expired appended exactly once however many replicas
	// sweep), but only once the watermark of ActivityGroup on the shard has passed
	// the deadline, or settle_max has, or at once where the group never was; purge sessions whose retention
	// has passed (as Delete does, but with nothing appended); and trim feeds.
	// Where some shards cannot be reached it must sweep the others, and return an
	// error that is ErrPartly.
	Sweep(ctx context.Context) (SweepResult, error)
}

// Activity is something a user did in a session.
type Activity struct {
	SessionID string
	// Time is when it happened; the zero time is now.
	Time    time.Time
	Kind    string
	EventID string
	// Traceparent is stored in the session:extended event it causes.
	Traceparent string
	// Counts are the activities by kind that the report stands for; empty for
	// one of Kind.
	Counts map[string]int64
}

// Stands returns the activities by kind and their sum.
func (a Activity) Stands() (counts map[string]int64, sum int64) {
	if len(a.Counts) == 0 {
		if a.Kind == "" {
			return nil, 1
		}
		return map[string]int64{a.Kind: 1}, 1
	}
	for _, n := range a.Counts {
		sum += n
	}
	return a.Counts, sum
}

// Explanation is what a session remembers of its activity.
type Explanation struct {
	// Kind is that of the latest activity.
	Kind string
	// Counts are the activities by kind.
	Counts map[string]int64
	// Decisions are the latest lifetime.MaxDecisions, the latest first.
	Decisions []*sessionv1.Decision
}

// Explain describes a history, which may be nil.
func Explain(h *lifetime.History, t lifetime.Terms) Explanation {
	if h == nil {
		return Explanation{}
	}
	out := Explanation{Kind: h.Kind, Counts: h.Counts}
	for _, d := range slices.Backward(h.Decisions) {
		out.Decisions = append(out.Decisions, d.Message(t))
	}
	return out
}

// ExtendResult is the answer to one activity.
type ExtendResult struct {
	Response *sessionv1.ExtendTTLResponse
	Err      error
}

// SweepResult counts what a sweep did.
type SweepResult struct {
	Warned  int
	Expired int
	Purged  int
	// Trimmed counts feed entries dropped after every group was done with them.
	Trimmed int
	// Held counts due sessions left alone because a watermark is behind, or under
	// a hold.
	Held int
}

// Events is a session's own log.
type Events interface {
	// Append must append the events in order, all or none, to the session's log
	// and to the feed, and return a cursor for each. An event whose id is still
	// in the log must not be appended again and must be answered with the cursor
	// it has. It must return ErrNotFound, and ErrEnded when the session is ended
	// or past its deadline. Each event comes with id, type, time and origin set.
	// The log keeps the latest MaxEvents (an option of the backend).
	Append(ctx context.Context, id string, events []*sessionv1.Event) (cursors []string, err error)
	// ListEvents must return events after the cursor in order, at most Limit,
	// with their cursors. It must work for a session that is over, too, return
	// ErrNotFound when there is none, and an InvalidError for `after` when the
	// cursor is malformed. With Wait it must block until there is one, the wait
	// is over (then an empty page), or the session is over or deleted.
	ListEvents(ctx context.Context, q EventQuery) (EventPage, error)
}

// EventQuery selects a page of a session's log.
type EventQuery struct {
	SessionID string
	// After is a cursor; "0" for the oldest kept. Ignored when Tail is set.
	After string
	// Tail asks for the last Tail events instead.
	Tail  int
	Limit int
	Wait  time.Duration
}

// EventPage is a page of a session's log.
type EventPage struct {
	Events []*sessionv1.Event
	// Next is the cursor of the last event, or After when there is none ("0"
	// for an empty log).
	Next string
	// More says that there are events after Next.
	More bool
	// Truncated says that events after After are no longer kept.
	Truncated bool
	// Over says that the session is ended, expired or deleted, and that no event
	// will follow Next.
	Over bool
}

// ActivityGroup is the consumer group that decides what extends a session: the
// sweeper waits for it, and for no other.
const ActivityGroup = "activity"

// Feed delivers every event and lifecycle change to groups of consumers.
type Feed interface {
	// OpenFeed must register the group on every shard if it is new (it then
	// starts at the oldest entries kept, so that activity from before the first
	// start of its consumer counts) and the consumer in it. Each
	// shard is read by one consumer of a group at a time, under a lease; shards
	// must be shared out evenly among the live consumers. A reader with the
	// same group and consumer name must take over at once from the one before,
	// whose Next must then return ErrClosed.
	OpenFeed(ctx context.Context, group, consumer string) (FeedReader, error)
	// Groups must return the state of each group on each shard.
	Groups(ctx context.Context) ([]GroupState, error)
}

// FeedReader is one consumer's place in a group. Its methods may be called
// concurrently with each other, but Next only by one goroutine.
type FeedReader interface {
	// Next must block until there is an entry or a change of assignment or the
	// context ends, and return at most limit entries. Entries of a shard must
	// come in order. A shard newly leased must start with every entry that the
	// group was given but has not acknowledged, whoever held it.
	Next(ctx context.Context, limit int) (FeedBatch, error)
	// Ack must acknowledge every entry of the shard delivered to this reader up
	// to and including the cursor. Acknowledging again must be harmless.
	Ack(ctx context.Context, acks []FeedAck) error
	// Close must give the leases up at once. What was not acknowledged must be
	// delivered again to whoever leases the shard next.
	Close() error
}

// FeedBatch is what Next returns.
type FeedBatch struct {
	Entries []*sessionv1.FeedEntry
	// Shards is the assignment, where Changed.
	Shards  []int
	Changed bool
}

// FeedAck acknowledges a shard up to a cursor.
type FeedAck struct {
	Shard  int
	Cursor string
}

// GroupState is how far a group has come on a shard.
type GroupState struct {
	Group string
	Shard int
	// Consumer holds the lease; empty when nobody does.
	Consumer string
	// Pending is delivered and not acknowledged; Lag is not yet delivered.
	Pending int64
	Lag     int64
	// Watermark: every entry appended before it was read and acknowledged.
	Watermark time.Time
}

// Policies keeps the TTL policy of each project.
type Policies interface {
	// GetPolicy must return ErrNotFound when the project has none.
	GetPolicy(ctx context.Context, project string) (*sessionv1.ProjectPolicy, error)
	// SetPolicy must store the policy with update_time now, and return it.
	SetPolicy(ctx context.Context, project string, p *sessionv1.TTLPolicy) (*sessionv1.ProjectPolicy, error)
	// DeletePolicy must return ErrNotFound when the project has none.
	DeletePolicy(ctx context.Context, project string) error
	// ListPolicies must return policies by project name, with the paging
	// promises of Index.List.
	ListPolicies(ctx context.Context, limit int, token string) (PolicyPage, error)
}

// PolicyPage is a page of policies; Next is empty on the last.
type PolicyPage struct {
	Policies []*sessionv1.ProjectPolicy
	Next     string
}
