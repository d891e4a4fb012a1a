package server

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Headers of answers that were not given by the backend, or that it does not
// have yet.
const (
	// headerServedBy is "fallback" where some of the answer is remembered;
	// headerStaleFor is how old the oldest part is, in seconds ("1.5s").
	headerServedBy = "stoker-served-by"
	headerStaleFor = "stoker-stale-for"
	// headerDurability is "journal" where a write is on this replica's disk, and
	// the backend will get it later.
	headerDurability = "stoker-durability"
)

// Marks remembers what is to be said about the answers of calls under way, and
// says it once for each: decorators of the store may mark an answer many times,
// and a header that was set cannot be taken back. It is safe for concurrent
// use.
//
// What is marked is found by the call's stream, not put into its context: a
// call that nobody marks costs one look at a counter.
type Marks struct {
	n     atomic.Int64
	mu    sync.Mutex
	calls map[grpc.ServerTransportStream]mark
}

type mark struct {
	stale, journaled bool
	age              time.Duration
}

// NewMarks returns an empty one.
func NewMarks() *Marks { return &Marks{calls: map[grpc.ServerTransportStream]mark{}} }

// Stale marks the answer of ctx's call as given from what is remembered, and
// age old. A context that belongs to no call is left alone.
func (m *Marks) Stale(ctx context.Context, age time.Duration) {
	m.add(ctx, func(k *mark) { k.stale, k.age = true, max(k.age, age) })
}

// Journaled marks the answer of ctx's call as durable in the journal only.
func (m *Marks) Journaled(ctx context.Context) {
	m.add(ctx, func(k *mark) { k.journaled = true })
}

// add must be called while the call runs, else nobody takes the mark away.
func (m *Marks) add(ctx context.Context, set func(k *mark)) {
	call := grpc.ServerTransportStreamFromContext(ctx)
	if call == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, known := m.calls[call]
	set(&k)
	m.calls[call] = k
	if !known {
		m.n.Add(1)
	}
}

// BeforeAnswer sets the headers of ctx's call, which is about to answer err. A
// call that fails for another reason than what was read has no answer to be
// marked.
func (m *Marks) BeforeAnswer(ctx context.Context, err error) {
	if m.n.Load() == 0 {
		return
	}
	k, marked := m.take(grpc.ServerTransportStreamFromContext(ctx))
	if !marked || !judged(err) {
		return
	}
	var pairs []string
	if k.stale {
		pairs = append(pairs, headerServedBy, "fallback", headerStaleFor, seconds(k.age))
	}
	if k.journaled {
		pairs = append(pairs, headerDurability, "journal")
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs(pairs...)) // fails for a stream that has begun: too late to say more
}

// judged says whether an answer follows from the state of a session.
func judged(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.NotFound, codes.FailedPrecondition, codes.Aborted:
		return true
	default:
		return false
	}
}

func (m *Marks) take(call grpc.ServerTransportStream) (mark, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, marked := m.calls[call]
	if marked {
		delete(m.calls, call)
		m.n.Add(-1)
	}
	return k, marked
}

// seconds spells a duration as JSON does in protobuf: "90s", "1.5s".
func seconds(d time.Duration) string {
	return strconv.FormatFloat(d.Round(time.Millisecond).Seconds(), 'f', -1, 64) + "s"
}
