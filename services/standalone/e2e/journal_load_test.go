//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// ledger is what clients of a store were told. Each session has one writer,
// with at most one call at a time; so what must be there is known exactly, but
// for what a call that failed may have done.
type ledger struct {
	note func(c faultCall, err error)

	mu    sync.Mutex
	told  map[string]*told
	ids   []string
	wrong []string
}

// told is what was said of one session.
type told struct {
	events []string // in order
	// label is the number last set, tried the one last asked for.
	label, tried int
	// The first of each pair says that it was asked for, the second that it was
	// acknowledged.
	ending, ended, deleting, deleted bool

	user, project string
	// deadline is the latest that was acknowledged, limit the latest that the
	// session can ever reach.
	deadline, limit time.Time
}

// due reports whether the session may have expired by now.
func (s told) due() bool { return !s.deadline.IsZero() && !time.Now().Before(s.deadline) }

// lives reports whether the session must be live: nobody has asked to end or
// delete it, and its deadline is ahead.
func (s told) lives() bool { return !s.ending && !s.deleting && !s.due() }

func newLedger(note func(c faultCall, err error)) *ledger {
	return &ledger{note: note, told: map[string]*told{}}
}

// of returns what was told of a session, as it is now.
func (l *ledger) of(id string) told {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.told[id]
}

func (l *ledger) set(id string, change func(s *told)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l.told[id])
}

// writes counts what was acknowledged.
func (l *ledger) writes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.told {
		n += s.writes()
	}
	return n
}

func (s told) writes() int {
	n := 1 + len(s.events)
	for _, done := range []bool{s.label > 0, s.ended, s.deleted} {
		if done {
			n++
		}
	}
	return n
}

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

func (l *ledger) pick() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ids) == 0 {
		return ""
	}
	return l.ids[rand.IntN(len(l.ids))]
}

// writer changes sessions of its own: the first one lives on, the others are
// ended or deleted in turn.
type writer struct {
	*ledger
	store sessionv1.StorageServiceClient
	user  string
	mine  []string
	n     int
	// data goes with each event; none where nil.
	data *structpb.Value
	// err is what the last call failed with, nil where it did not.
	err error
}

// step makes the next call.
func (w *writer) step(ctx context.Context) {
	w.n++
	switch {
	case w.n%25 == 1:
		w.create(ctx)
	case len(w.mine) == 0:
	case len(w.mine) > 8:
		id := w.mine[1]
		w.mine = append(w.mine[:1], w.mine[2:]...)
		if w.n%2 == 0 {
			w.end(ctx, id)
		} else {
			w.remove(ctx, id)
		}
	case w.n%5 == 0:
		w.update(ctx, w.mine[rand.IntN(len(w.mine))])
	default:
		w.event(ctx, w.mine[rand.IntN(len(w.mine))])
	}
}

// call makes one call and writes down how it went. Of a session that is there
// and lives, nothing but "unavailable" is a good reason not to change it.
func (w *writer) call(what, id string, do func(h grpc.CallOption) error) bool {
	err := w.send(what, id, do)
	if c := status.Code(err); c != codes.OK && c != codes.Unavailable {
		w.fault("%s %s: %v", what, id, err)
	}
	return err == nil
}

// send makes one call that writes and records how it went.
func (w *writer) send(what, id string, do func(h grpc.CallOption) error) error {
	begin := time.Now()
	var h metadata.MD
	err := do(grpc.Header(&h))
	w.err = err
	marks := h.Get("stoker-durability")
	if len(marks) > 1 || len(marks) == 1 && (marks[0] != "journal" || err != nil) {
		w.fault("%s %s answered %v, marked %v", what, id, err, marks)
	}
	w.note(faultCall{op: what, id: id, begin: begin, write: true, journaled: len(marks) > 0}, err)
	return err
}

func (w *writer) create(ctx context.Context) {
	if id := w.createAs(ctx, &sessionv1.CreateSessionRequest{User: w.user, TtlPolicy: &sessionv1.TTLPolicy{BaseTtl: durationpb.New(time.Hour)}}); id != "" {
		w.mine = append(w.mine, id)
	}
}

// createAs creates a session and returns its id, empty where that failed.
func (w *writer) createAs(ctx context.Context, req *sessionv1.CreateSessionRequest) string {
	var s *sessionv1.Session
	if !w.call("create", "", func(h grpc.CallOption) (err error) {
		s, err = w.store.CreateSession(ctx, req, h)
		return err
	}) {
		return ""
	}
	w.add(s)
	return s.GetId()
}

// add records a session whose creation was acknowledged; again, it does nothing.
func (l *ledger) add(s *sessionv1.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told[s.GetId()] != nil {
		return
	}
	l.told[s.GetId()] = &told{
		user: s.GetUser(), project: s.GetProject(), deadline: s.GetExpireTime().AsTime(), limit: s.GetCapTime().AsTime(),
	}
	l.ids = append(l.ids, s.GetId())
}

func (w *writer) event(ctx context.Context, id string) {
	event := fmt.Sprintf("e-%s-%d", w.user, w.n)
	if w.call("append", id, func(h grpc.CallOption) error {
		_, err := w.store.AppendEvents(ctx, &sessionv1.AppendEventsRequest{Id: id, Events: []*sessionv1.Event{{Id: event, Type: "input:text", Data: w.data}}}, h)
		return err
	}) {
		w.set(id, func(s *told) { s.events = append(s.events, event) })
	}
}

func (w *writer) update(ctx context.Context, id string) {
	w.set(id, func(s *told) { s.tried = w.n })
	if w.call("update", id, func(h grpc.CallOption) error {
		_, err := w.store.UpdateSession(ctx, &sessionv1.UpdateSessionRequest{
			Id: id, Session: &sessionv1.Session{Labels: map[string]string{"n": strconv.Itoa(w.n)}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.n"}},
		}, h)
		return err
	}) {
		w.set(id, func(s *told) { s.label = w.n })
	}
}

func (w *writer) end(ctx context.Context, id string) {
	w.set(id, func(s *told) { s.ending = true })
	if w.call("end", id, func(h grpc.CallOption) error {
		_, err := w.store.EndSession(ctx, &sessionv1.EndSessionRequest{Id: id, Reason: "done"}, h)
		return err
	}) {
		w.set(id, func(s *told) { s.ended = true })
	}
}

func (w *writer) remove(ctx context.Context, id string) {
	w.set(id, func(s *told) { s.deleting = true })
	if w.call("delete", id, func(h grpc.CallOption) error {
		_, err := w.store.DeleteSession(ctx, &sessionv1.DeleteSessionRequest{Id: id}, h)
		return err
	}) {
		w.set(id, func(s *told) { s.deleted = true })
	}
}

// pace makes a call every few milliseconds until stop is closed.
func pace(stop <-chan struct{}, call func(ctx context.Context)) {
	paceEvery(stop, 4*time.Millisecond, call)
}

// paceEvery is pace at a given interval.
func paceEvery(stop <-chan struct{}, every time.Duration, call func(ctx context.Context)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		call(ctx)
		cancel()
	}
}

// check holds what is read of a session to what was told before it was asked
// for, and to what was asked for by the time of the answer. What is remembered
// may be old, but for the end of a session.
func (l *ledger) check(before told, id string, got *sessionv1.Session, err error, stale bool) {
	after := l.of(id)
	switch c := status.Code(err); {
	case c == codes.NotFound && !after.deleting:
		l.fault("%s is there, and was answered %v", id, err)
	case c == codes.OK && before.deleted:
		l.fault("%s was deleted, and was answered", id)
	case c == codes.OK && before.ended && got.GetEndTime() == nil:
		l.fault("%s was ended, and reads as live", id)
	case c == codes.OK && got.GetEndTime() != nil && !after.ending && !after.due():
		l.fault("%s lives, and reads as ended", id)
	case c == codes.OK:
		if n := number(got); n > after.tried || !stale && n < before.label {
			l.fault("%s has label %d, of %d that was acknowledged and %d that was asked for", id, n, before.label, after.tried)
		}
	}
}

// number is the label that update sets, 0 for none.
func number(s *sessionv1.Session) int {
	n, _ := strconv.Atoi(s.GetLabels()["n"]) // none, or one of ours
	return n
}

// lost reads everything that was told back from a store, and counts what is
// not there. Events must be there in order and once each, and so must what the
// store tells of a session itself.
func (l *ledger) lost(t *testing.T, store sessionv1.StorageServiceClient) int {
	t.Helper()
	l.mu.Lock()
	ids := append([]string(nil), l.ids...)
	l.mu.Unlock()
	lost := 0
	for _, id := range ids {
		want := l.of(id)
		var got *sessionv1.Session
		var err error
		// An answer from the near-cache does not show what was lost. A breaker that has
		// just let its probes through may still give one.
		eventually(t, 5*time.Second, "Redis answers for "+id, func() bool {
			var h metadata.MD
			got, err = store.GetSession(t.Context(), &sessionv1.GetSessionRequest{Id: id}, grpc.Header(&h))
			return len(h.Get("stoker-served-by")) == 0
		})
		l.check(want, id, got, err, false)
		switch {
		case status.Code(err) == codes.NotFound && want.deleting:
		case status.Code(err) == codes.NotFound:
			lost += want.writes()
		case err != nil:
			t.Fatal(err)
		default:
			lost += l.missing(t, store, id, want, got)
		}
	}
	return lost
}

// missing counts what is not there of a session that is.
func (l *ledger) missing(t *testing.T, store sessionv1.StorageServiceClient, id string, want told, got *sessionv1.Session) (lost int) {
	t.Helper()
	for _, gone := range []bool{want.deleted, want.ended && (got.GetEndTime() == nil || got.GetEndReason() != "done"), number(got) < want.label} {
		if gone {
			lost++
		}
	}
	at, types := map[string]int{}, map[string]int{}
	for i, e := range allEvents(t, store, id) {
		types[e.GetType()]++
		if _, twice := at[e.GetId()]; twice {
			l.fault("event %s of %s is stored twice", e.GetId(), id)
		}
		at[e.GetId()] = i
	}
	last := -1
	for _, e := range want.events {
		i, ok := at[e]
		switch {
		case !ok:
			lost++
			continue
		case i < last:
			l.fault("event %s of %s is before one that it came after", e, id)
		}
		last = i
	}
	ends := types["session:ended"]
	if types["session:created"] != 1 || ends > 1 || want.ended && ends != 1 || !want.ending && ends != 0 {
		l.fault("the log of %s has %v; ended: %v", id, types, want.ended)
	}
	return lost
}

// allEvents reads a session's log.
func allEvents(t *testing.T, store sessionv1.StorageServiceClient, id string) (out []*sessionv1.Event) {
	t.Helper()
	after := "0"
	for {
		page, err := store.ListEvents(t.Context(), &sessionv1.ListEventsRequest{Id: id, After: &after, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if page.GetTruncated() {
			t.Fatalf("the log of %s is not whole", id)
		}
		if len(page.GetEvents()) == 0 {
			return out
		}
		out = append(out, page.GetEvents()...)
		after = page.GetNextCursor()
	}
}
