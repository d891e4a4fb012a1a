package storagetest_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/memory"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

// TestPlantedBugsAreCaught proves that the suite can fail: it runs over stores
// with one bug each, and a case that guards against the bug must fail.
func TestPlantedBugsAreCaught(t *testing.T) {
	for bug, plant := range map[string]struct {
		store func(s storage.Store) storage.Store
		in    string // the case that has to notice
	}{
		"a repeated request makes another session":  {func(s storage.Store) storage.Store { return forgetsRequests{s} }, "create/same request same session"},
		"reading counts as activity":                {func(s storage.Store) storage.Store { return readsExtend{s} }, "get/changes nothing"},
		"malformed ids are found":                   {func(s storage.Store) storage.Store { return findsAll{s} }, "get/unknown is not found"},
		"the expected revision is ignored":          {func(s storage.Store) storage.Store { return noRevision{s} }, "update/one of several wins"},
		"a list skips its last session":             {func(s storage.Store) storage.Store { return skipsLast{s} }, "list/filters and pages"},
		"a page token is taken for any list":        {func(s storage.Store) storage.Store { return anyToken{s} }, "list/alien tokens are refused"},
		"revoking ignores the exceptions":           {func(s storage.Store) storage.Store { return noExceptions{s} }, "revoke/all but the exceptions"},
		"activity counts from when it is processed": {func(s storage.Store) storage.Store { return processingTime{s} }, "extend/judged by event time"},
		"a batch is answered in reverse":            {func(s storage.Store) storage.Store { return reversed{s} }, "extend/answers per item, in order"},
		"sweeping does nothing":                     {func(s storage.Store) storage.Store { return lazySweeper{s} }, "sweep/warns once per deadline, expires once"},
		"events are stored twice":                   {func(s storage.Store) storage.Store { return storesTwice{s} }, "events/the same id is not stored twice"},
		"a truncated log does not say so":           {func(s storage.Store) storage.Store { return silentTruncation{s} }, "events/the log is bounded, and says so"},
		"a wait returns at once":                    {func(s storage.Store) storage.Store { return impatient{s} }, "wait/no longer than asked"},
		"the feed acknowledges by itself":           {func(s storage.Store) storage.Store { return selfAcking{s} }, "feed/what was not acknowledged comes again after close"},
		"deleting leaves the feed silent":           {func(s storage.Store) storage.Store { return endsInstead{s} }, "feed/everything of every session, without data"},
		"a replay is judged by the clock":           {func(s storage.Store) storage.Store { return replaysNow{s} }, "replay/activity as of then"},
		"a replayed update is judged by the clock":  {func(s storage.Store) storage.Store { return replaysNow{s} }, "replay/an update as of then"},
		"a replayed end is of now":                  {func(s storage.Store) storage.Store { return replaysNow{s} }, "replay/an end as of then"},
		"replayed events are of now":                {func(s storage.Store) storage.Store { return replaysNow{s} }, "replay/events as of then"},
		"a replayed create begins now":              {func(s storage.Store) storage.Store { return restartsClocks{s} }, "replay/a create keeps its times"},
		"told cursors are ignored":                  {func(s storage.Store) storage.Store { return forgetsCursors{s} }, "replay/cursors are those that were told"},
		"told lifecycle cursors are ignored":        {func(s storage.Store) storage.Store { return forgetsCursors{s} }, "replay/lifecycle events have the cursor that was told"},
		"a replayed create takes the request key":   {func(s storage.Store) storage.Store { return takesRequests{s} }, "replay/a request key stays with the session that has it"},
		"a replay brings back what was deleted":     {func(s storage.Store) storage.Store { return newTwins(s) }, "replay/nothing is revived"},
		"a replayed delete minds":                   {func(s storage.Store) storage.Store { return mindsDeletes{s} }, "replay/a delete does not mind"},
		"a replay is applied twice":                 {func(s storage.Store) storage.Store { return unnamedReplays{s} }, "replay/the same again changes nothing"},
		"a replay applies what was applied":         {func(s storage.Store) storage.Store { return unnamedReplays{s} }, "replay/what was applied before is not applied again"},
		"replayed events do not come into the feed": {func(s storage.Store) storage.Store { return endsReplays{s} }, "replay/the feed has it behind what is there"},
		"an empty write is taken":                   {func(s storage.Store) storage.Store { return takesAll{s} }, "replay/what is no write is refused"},
		"names of updates are forgotten":            {func(s storage.Store) storage.Store { return unnamed{s} }, "update/the same write is the same update"},
		"updates without a name are one":            {func(s storage.Store) storage.Store { return oneName{s} }, "update/updates without a name are different"},
		"holds are ignored":                         {func(s storage.Store) storage.Store { return noHolds{s} }, "hold/what is due from then on is left alone"},
		"warnings ignore holds":                     {func(s storage.Store) storage.Store { return noHolds{s} }, "hold/warnings, too"},
		"a hold cannot be given up":                 {func(s storage.Store) storage.Store { return clings{s} }, "hold/given up"},
		"the latest hold counts":                    {func(s storage.Store) storage.Store { return oneHolder{s} }, "hold/the earliest counts"},
		"a hold never moves back":                   {func(s storage.Store) storage.Store { return &onward{Store: s} }, "hold/moved back"},
		"a hold holds for ever":                     {func(s storage.Store) storage.Store { return &forEver{Store: s} }, "hold/no longer than settle_max"},
		"an old hold holds nothing":                 {func(s storage.Store) storage.Store { return &lapsing{s, map[string]bool{}} }, "hold/no longer than settle_max"},
		"a repair changes sessions":                 {func(s storage.Store) storage.Store { return touchyRepair{s} }, "repair/changes nothing where all agrees"},
		"a repair looks at nothing":                 {func(s storage.Store) storage.Store { return idleRepair{s} }, "repair/looks at every session"},
		"replayed events hold nobody up":            {func(s storage.Store) storage.Store { return loses{s} }, "replay/sweeps wait for its events, and no longer than settle_max"},
	} {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			for _, c := range storagetest.Cases() {
				if c.Name != plant.in {
					continue
				}
				fx := fixture(t)
				if failed, why := failing(t, c, fx); failed {
					t.Fatalf("fails without the bug: %s", why)
				}
				fx = fixture(t)
				fx.Store = plant.store(fx.Store)
				if failed, _ := failing(t, c, fx); !failed {
					t.Errorf("%q did not notice", c.Name)
				}
				return
			}
			t.Errorf("there is no case %q", plant.in)
		})
	}
}

func fixture(t *testing.T) storagetest.Fixture {
	t.Helper()
	var mu sync.Mutex
	now := time.UnixMilli(1_800_000_000_000)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	o := storagetest.OptionsFor(time.Second)
	s, err := memory.New(memory.Options{Shards: storagetest.Shards, MaxEvents: storagetest.MaxEvents, SettleMax: o.SettleMax, Retention: o.Retention, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return storagetest.Fixture{Store: s, Unit: time.Second, Now: clock, Advance: func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}, Entries: func() int { return int(s.Status(t.Context()).Entries) }}
}

// recorder is a test that only remembers whether it failed.
type recorder struct {
	ctx    context.Context
	mu     sync.Mutex
	failed bool
	why    string
}

func (r *recorder) Helper()                  {}
func (r *recorder) Context() context.Context { return r.ctx }

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed, r.why = true, fmt.Sprintf(format, args...)
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func failing(t *testing.T, c storagetest.Case, fx storagetest.Fixture) (bool, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	r := &recorder{ctx: ctx}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(r, fx)
	}()
	<-done
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed, r.why
}

type forgetsRequests struct{ storage.Store }

func (s forgetsRequests) Create(ctx context.Context, x *sessionv1.Session, _ string) (*sessionv1.Session, bool, error) {
	return s.Store.Create(ctx, x, "")
}

type readsExtend struct{ storage.Store }

func (s readsExtend) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	if _, err := s.Extend(ctx, []storage.Activity{{SessionID: id}}); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, id)
}

type findsAll struct{ storage.Store }

func (s findsAll) Get(ctx context.Context, id string) (*sessionv1.Session, error) {
	x, err := s.Store.Get(ctx, id)
	if id == "nonsense" {
		return &sessionv1.Session{}, nil
	}
	return x, err
}

type noRevision struct{ storage.Store }

func (s noRevision) Update(ctx context.Context, id string, u storage.Update) (*sessionv1.Session, error) {
	u.IfRevision = 0
	return s.Store.Update(ctx, id, u)
}

type skipsLast struct{ storage.Store }

func (s skipsLast) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	p, err := s.Store.List(ctx, q)
	if n := len(p.Sessions); n > 0 && p.Next == "" {
		p.Sessions = p.Sessions[:n-1]
	}
	return p, err
}

type anyToken struct{ storage.Store }

func (s anyToken) List(ctx context.Context, q storage.ListQuery) (storage.SessionPage, error) {
	p, err := s.Store.List(ctx, q)
	if err != nil {
		q.Token = ""
		return s.Store.List(ctx, q)
	}
	return p, err
}

type noExceptions struct{ storage.Store }

func (s noExceptions) RevokeUser(ctx context.Context, project, user string, _ []string, reason string) (int, error) {
	return s.Store.RevokeUser(ctx, project, user, nil, reason)
}

type processingTime struct{ storage.Store }

func (s processingTime) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	items = slices.Clone(items)
	for i := range items {
		items[i].Time = time.Time{}
	}
	return s.Store.Extend(ctx, items)
}

type reversed struct{ storage.Store }

func (s reversed) Extend(ctx context.Context, items []storage.Activity) ([]storage.ExtendResult, error) {
	res, err := s.Store.Extend(ctx, items)
	slices.Reverse(res)
	if len(res) > 2 {
		res[0], res[1] = res[1], res[0]
	}
	return res, err
}

type lazySweeper struct{ storage.Store }

func (s lazySweeper) Sweep(context.Context) (storage.SweepResult, error) {
	return storage.SweepResult{}, nil
}

type storesTwice struct{ storage.Store }

func (s storesTwice) Append(ctx context.Context, id string, events []*sessionv1.Event) ([]string, error) {
	out := make([]*sessionv1.Event, len(events))
	for i, e := range events {
		out[i], _ = proto.Clone(e).(*sessionv1.Event)
		out[i].Id = fmt.Sprint(e.GetId(), time.Now().UnixNano())
	}
	return s.Store.Append(ctx, id, out)
}

type silentTruncation struct{ storage.Store }

func (s silentTruncation) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	p, err := s.Store.ListEvents(ctx, q)
	p.Truncated = false
	return p, err
}

type impatient struct{ storage.Store }

func (s impatient) ListEvents(ctx context.Context, q storage.EventQuery) (storage.EventPage, error) {
	q.Wait = 0
	return s.Store.ListEvents(ctx, q)
}

type selfAcking struct{ storage.Store }

func (s selfAcking) OpenFeed(ctx context.Context, group, consumer string) (storage.FeedReader, error) {
	r, err := s.Store.OpenFeed(ctx, group, consumer)
	return selfAckingReader{r}, err
}

type selfAckingReader struct{ storage.FeedReader }

func (r selfAckingReader) Next(ctx context.Context, limit int) (storage.FeedBatch, error) {
	b, err := r.FeedReader.Next(ctx, limit)
	for _, e := range b.Entries {
		if err := r.Ack(ctx, []storage.FeedAck{{Shard: int(e.GetShard()), Cursor: e.GetCursor()}}); err != nil {
			return b, err
		}
	}
	return b, err
}

type endsInstead struct{ storage.Store }

func (s endsInstead) Delete(ctx context.Context, id string) error {
	_, err := s.End(ctx, id, "")
	return err
}

// touchyRepair writes to every session that it looks at.
type touchyRepair struct{ storage.Store }

func (s touchyRepair) Repair(ctx context.Context, q storage.RepairQuery) (storage.RepairResult, error) {
	page, err := s.List(ctx, storage.ListQuery{Limit: 100})
	if err != nil {
		return storage.RepairResult{}, err
	}
	for _, x := range page.Sessions {
		if _, err := s.Update(ctx, x.GetId(), storage.Update{}); err != nil {
			return storage.RepairResult{}, err
		}
	}
	return s.Store.Repair(ctx, q)
}

// idleRepair says that it is done.
type idleRepair struct{ storage.Store }

func (idleRepair) Repair(context.Context, storage.RepairQuery) (storage.RepairResult, error) {
	return storage.RepairResult{Done: true}, nil
}
