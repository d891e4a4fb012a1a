package redis_test

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/storagetest"
)

const repairShard = "stoker:{s3}:"

// indexed is a store with one session, and what its indexes hold of it.
type indexed struct {
	t      *testing.T
	s      *redis.Store
	client *goredis.Client
	id     string
}

// newIndexed opens a store with a session of that lifetime, which has events and a
// request key.
func newIndexed(t *testing.T, ttl time.Duration) *indexed {
	t.Helper()
	server := redistest.Start(t)
	x := &indexed{t: t, s: open(t, server.URL(), func(o *redis.Options) { o.Retention = time.Hour }), client: raw(t, server)}
	x.id, _ = create(t, x.s, newSession(3, "ann", ttl), "req")
	x.append("e1")
	return x
}

func (x *indexed) append(id string) {
	x.t.Helper()
	if _, err := x.s.Append(x.t.Context(), x.id, []*sessionv1.Event{{Id: id, Type: "input:text"}}); err != nil {
		x.t.Fatal(err)
	}
}

// entries are the index entries of the shard, with their scores.
func (x *indexed) entries() map[string]float64 {
	x.t.Helper()
	out := map[string]float64{}
	for _, index := range []string{"deadlines", "warnings", "retired", "by-user", "by-project"} {
		zs, err := x.client.ZRangeWithScores(x.t.Context(), repairShard+index, 0, -1).Result()
		if err != nil {
			x.t.Fatal(err)
		}
		for _, z := range zs {
			out[fmt.Sprint(index, " ", z.Member)] = z.Score
		}
	}
	return out
}

func (x *indexed) repair() storage.RepairResult {
	x.t.Helper()
	r, err := x.s.Repair(x.t.Context(), storage.RepairQuery{})
	if err != nil || !r.Done {
		x.t.Fatalf("repair: %+v, %v", r, err)
	}
	return r
}

func (x *indexed) do(args ...any) {
	x.t.Helper()
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = strings.ReplaceAll(strings.ReplaceAll(s, "<p>", repairShard), "<id>", x.id)
		}
	}
	if err := x.client.Do(x.t.Context(), args...).Err(); err != nil {
		x.t.Fatal(args, err)
	}
}

func (x *indexed) sweep() storage.SweepResult {
	x.t.Helper()
	r, err := x.s.Sweep(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

// TestRepairRestoresEveryIndex: whatever is missing or wrong in an index is put
// right by the session's own record, and a second repair finds nothing to do.
func TestRepairRestoresEveryIndex(t *testing.T) {
	for name, damage := range map[string][]any{
		"no deadline":              {"zrem", "<p>deadlines", "<id>"},
		"a deadline too early":     {"zadd", "<p>deadlines", 1, "<id>"},
		"a deadline too late":      {"zadd", "<p>deadlines", 9e15, "<id>"},
		"no warning":               {"zrem", "<p>warnings", "<id>"},
		"a warning too late":       {"zadd", "<p>warnings", 9e15, "<id>"},
		"not by user":              {"zrem", "<p>by-user", "ann\x00acme\x00<id>"},
		"not by project":           {"zrem", "<p>by-project", "acme\x00ann\x00<id>"},
		"retired while it is live": {"zadd", "<p>retired", 1, "<id>"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndexed(t, time.Hour)
			want := x.entries()
			x.do(damage...)
			if maps.Equal(x.entries(), want) {
				t.Fatal("nothing was damaged")
			}
			if r := x.repair(); r.Sessions != 1 || r.Restored != 1 {
				t.Errorf("the first repair: %+v", r)
			}
			if got := x.entries(); !maps.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if r := x.repair(); r.Restored != 0 || r.Dropped != 0 {
				t.Errorf("the second repair: %+v", r)
			}
		})
	}
}

// TestRepairRetiresWhatIsOver: a session that has ended by its record is in no live
// index after a repair, and is purged.
func TestRepairRetiresWhatIsOver(t *testing.T) {
	for name, damage := range map[string][]any{
		"not retired":           {"zrem", "<p>retired", "<id>"},
		"retired too late":      {"zadd", "<p>retired", 9e15, "<id>"},
		"still has a deadline":  {"zadd", "<p>deadlines", 1, "<id>"},
		"still to be warned":    {"zadd", "<p>warnings", 1, "<id>"},
		"still by user":         {"zadd", "<p>by-user", 0, "ann\x00acme\x00<id>"},
		"still by project":      {"zadd", "<p>by-project", 0, "acme\x00ann\x00<id>"},
		"without a purge time":  {"hdel", "<p>session:<id>", "purge"},
		"of which all is wrong": {"eval", "redis.call('DEL', KEYS[1]) redis.call('ZADD', KEYS[2], 5, ARGV[1]) return 1", 2, "<p>retired", "<p>deadlines", "<id>"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndexed(t, time.Hour)
			if _, err := x.s.End(t.Context(), x.id, "done"); err != nil {
				t.Fatal(err)
			}
			want := x.entries()
			x.do(damage...)
			x.repair()
			got := x.entries()
			for entry := range want {
				if _, ok := got[entry]; !ok || len(got) != len(want) {
					t.Errorf("got %v, want %v", got, want)
				}
			}
			if r := x.repair(); r.Restored != 0 || r.Dropped != 0 {
				t.Errorf("the second repair: %+v", r)
			}
		})
	}
}

// TestRepairLengthensTheSafetyNet: keys that would expire before their session are
// kept as long as it is, its request key for longer.
func TestRepairLengthensTheSafetyNet(t *testing.T) {
	x := newIndexed(t, time.Hour)
	keys := []string{"session:" + x.id, "events:" + x.id, "ids:" + x.id, "request:acme\x00ann\x00req"}
	was := map[string]time.Duration{}
	for _, k := range keys {
		was[k] = x.client.PTTL(t.Context(), repairShard+k).Val()
		x.do("pexpire", repairShard+k, 60_000)
	}
	x.repair()
	for _, k := range keys {
		if got := x.client.PTTL(t.Context(), repairShard+k).Val(); got < was[k]-2*time.Second {
			t.Errorf("%s expires in %v, want %v", k, got, was[k])
		}
	}
}

// TestRepairDropsOrphans: entries that no session is behind go, whichever index has
// them; what is behind others stays.
func TestRepairDropsOrphans(t *testing.T) {
	x := newIndexed(t, time.Hour)
	want := x.entries()
	for index, member := range map[string]string{
		"deadlines": "gone1", "warnings": "gone2", "retired": "gone3", "by-user": "bob\x00acme\x00gone4", "by-project": "acme\x00bob\x00gone5",
	} {
		x.do("zadd", repairShard+index, 9e15, member)
	}
	if r := x.repair(); r.Dropped != 5 || r.Restored != 0 {
		t.Errorf("repair: %+v", r)
	}
	if got := x.entries(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRepairWarnsOnce: of a session whose warning is due, a repair can tell whether
// it was given: by its mark, and by its log where an earlier version gave it.
func TestRepairWarnsOnce(t *testing.T) {
	expiring := func(x *indexed) (n int) {
		page, err := x.s.ListEvents(x.t.Context(), storage.EventQuery{SessionID: x.id, After: "0", Limit: 100})
		if err != nil {
			x.t.Fatal(err)
		}
		for _, e := range page.Events {
			if e.GetType() == "session:expiring" {
				n++
			}
		}
		return n
	}
	for name, c := range map[string]struct {
		warned bool
		damage []any
	}{
		"warned":                        {true, []any{"ping"}},
		"warned by an earlier version":  {true, []any{"hdel", "<p>session:<id>", "warned"}},
		"the mark of a deadline before": {true, []any{"hset", "<p>session:<id>", "warned", 1}},
		"lost before it was warned":     {false, []any{"zrem", "<p>warnings", "<id>"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndexed(t, 5*time.Minute) // less than extend_below
			if c.warned {
				x.sweep()
			}
			x.do(c.damage...)
			x.repair()
			x.sweep()
			x.repair()
			x.sweep()
			if n := expiring(x); n != 1 {
				t.Errorf("session:expiring was given %d times", n)
			}
		})
	}
}

// TestRepairCorrectsAWarningThatIsDue: a score too late hides a warning for ever.
func TestRepairCorrectsAWarningThatIsDue(t *testing.T) {
	x := newIndexed(t, 5*time.Minute) // less than extend_below
	x.do("zadd", "<p>warnings", 9e15, "<id>")
	if r := x.repair(); r.Restored != 1 {
		t.Errorf("repair: %+v", r)
	}
	if r := x.sweep(); r.Warned != 1 {
		t.Errorf("swept: %+v", r)
	}
}

// TestNoWarningTwiceWhenTheClockGoesBack: a warning that was given is marked, so
// neither an entry in the index nor a clock that says it is not due yet repeats it.
func TestNoWarningTwiceWhenTheClockGoesBack(t *testing.T) {
	x := newIndexed(t, 5*time.Minute)
	if r := x.sweep(); r.Warned != 1 {
		t.Fatalf("swept: %+v", r)
	}
	x.do("zadd", "<p>warnings", 1, "<id>")
	if r := x.sweep(); r.Warned != 0 {
		t.Errorf("warned again: %+v", r)
	}
	x.do("hset", "<p>session:<id>", "below", 1) // as if the warning were still to come
	if r := x.repair(); r.Restored != 0 {
		t.Errorf("repair: %+v", r)
	}
}

// TestRepairGoesOnPastAMalformedRecord: it is reported, others are repaired, and the
// format stays.
func TestRepairGoesOnPastAMalformedRecord(t *testing.T) {
	x := newIndexed(t, time.Hour)
	want := x.entries()
	x.do("hset", "<p>session:"+sessionid.New(3), "st", "0")
	x.do("zrem", "<p>deadlines", "<id>")
	x.do("hset", "stoker:{s0}:meta", "format", "1")
	r, err := x.s.Repair(t.Context(), storage.RepairQuery{})
	if err == nil || r.Done || r.Restored != 1 || !strings.Contains(err.Error(), "1 records are malformed") {
		t.Errorf("repair: %+v, %v", r, err)
	}
	if got := x.entries(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := x.client.HGet(t.Context(), "stoker:{s0}:meta", "format").Val(); got != "1" {
		t.Errorf("the format is %s", got)
	}
}

// TestExtensionKeepsTheRequestKeyOfAnEarlierVersion, which expires it soon after the
// deadline at the time.
func TestExtensionKeepsTheRequestKeyOfAnEarlierVersion(t *testing.T) {
	x := newIndexed(t, 5*time.Minute)
	x.do("hset", "stoker:{s0}:meta", "format", "1")
	old := open(t, "redis://"+x.client.Options().Addr)
	const request = repairShard + "request:acme\x00ann\x00req"
	x.do("pexpire", request, 60_000)
	res, err := old.Extend(t.Context(), []storage.Activity{{SessionID: x.id}})
	if err != nil || res[0].Response.GetOutcome() != sessionv1.ExtendTTLResponse_EXTENDED {
		t.Fatal(err, res)
	}
	session, left := x.client.PTTL(t.Context(), repairShard+"session:"+x.id).Val(), x.client.PTTL(t.Context(), request).Val()
	if left < session {
		t.Errorf("the request expires in %v, the session in %v", left, session)
	}
}

// TestSweepJudgesByTheRecord: an index's score alone expires, warns and purges
// nothing, and is corrected.
func TestSweepJudgesByTheRecord(t *testing.T) {
	x := newIndexed(t, time.Hour)
	want := x.entries()
	x.do("zadd", "<p>deadlines", 1, "<id>")
	x.do("zadd", "<p>warnings", 1, "<id>")
	x.do("zadd", "<p>retired", 1, "<id>")
	if r := x.sweep(); r.Expired != 0 || r.Warned != 0 || r.Purged != 0 {
		t.Errorf("swept: %+v", r)
	}
	if got := x.entries(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if s, err := x.s.Get(t.Context(), x.id); err != nil || s.GetEndTime() != nil {
		t.Errorf("the session: %v, %v", s, err)
	}
	if _, err := x.s.End(t.Context(), x.id, ""); err != nil {
		t.Fatal(err)
	}
	want = x.entries()
	x.do("zadd", "<p>retired", 1, "<id>")
	x.do("zadd", "<p>deadlines", 1, "<id>")
	if r := x.sweep(); r.Expired != 0 || r.Purged != 0 {
		t.Errorf("swept once it had ended: %+v", r)
	}
	if got := x.entries(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRepairRaisesTheFormat: data of the format before is read; a full repair
// raises it, a part of one does not, and none lowers it.
func TestRepairRaisesTheFormat(t *testing.T) {
	x := newIndexed(t, time.Hour)
	format := func() string { return x.client.HGet(t.Context(), "stoker:{s0}:meta", "format").Val() }
	if got := format(); got != "2" {
		t.Fatalf("new data has format %q", got)
	}
	x.do("hset", "stoker:{s0}:meta", "format", "1")
	old := open(t, "redis://"+x.client.Options().Addr)
	if _, err := old.Repair(t.Context(), storage.RepairQuery{Budget: 1000}); err != nil {
		t.Fatal(err)
	}
	if got := format(); got != "1" {
		t.Errorf("a part of a repair made it format %q", got)
	}
	x.repair()
	if got := format(); got != "2" {
		t.Errorf("a full repair left it at format %q", got)
	}
	x.do("hset", "stoker:{s0}:meta", "format", "3")
	if _, err := redis.New(t.Context(), redis.Options{URL: "redis://" + x.client.Options().Addr, Timeout: time.Second, Shards: 8, Clock: time.Now}); err == nil || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("opened data of a later format: %v", err)
	}
	x.repair()
	if got := format(); got != "3" {
		t.Errorf("a repair lowered it to format %q", got)
	}
}

// TestRepairWithABudgetGetsEverywhere: calls that look at a few keys each come to
// all sessions in the end.
func TestRepairWithABudgetGetsEverywhere(t *testing.T) {
	x := newIndexed(t, time.Hour)
	for n := range 2000 {
		create(t, x.s, newSession(n%8, fmt.Sprint("u", n), time.Hour), "")
	}
	for n := range 8 {
		x.do("del", fmt.Sprintf("stoker:{s%d}:by-project", n))
	}
	restored, calls := int64(0), 0
	for ; restored < 2001 && calls < 100; calls++ {
		r, err := x.s.Repair(t.Context(), storage.RepairQuery{Budget: 600})
		if err != nil {
			t.Fatal(err)
		}
		restored += r.Restored
		if r.Keys > 1000 {
			t.Fatalf("one call looked at %d keys", r.Keys)
		}
	}
	if restored != 2001 || calls < 4 {
		t.Errorf("%d calls restored %d of 2001 sessions", calls, restored)
	}
}

// TestManySweepersWarnAndExpireOnce: replicas that find the same sessions due at
// the same time warn each once, and expire each once.
func TestManySweepersWarnAndExpireOnce(t *testing.T) {
	const sessions, replicas = 300, 4
	server := redistest.Start(t)
	stores := make([]*redis.Store, replicas)
	for i := range stores {
		stores[i] = open(t, server.URL(), func(o *redis.Options) { o.Retention = time.Hour })
	}
	var ids []string
	for n := range sessions {
		id, _ := create(t, stores[0], newSession(n%8, fmt.Sprint("u", n), 3*time.Second), "")
		ids = append(ids, id)
	}
	sweep := func() (sum storage.SweepResult) {
		results := make([]storage.SweepResult, replicas)
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() {
				var err error
				if results[i], err = s.Sweep(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, r := range results {
			sum.Warned, sum.Expired = sum.Warned+r.Warned, sum.Expired+r.Expired
		}
		return sum
	}
	if r := sweep(); r.Warned != sessions {
		t.Errorf("warned %d times, want %d", r.Warned, sessions)
	}
	expired := 0
	storagetest.Until(t, "all are expired", func() bool {
		expired += sweep().Expired
		return expired >= sessions
	})
	if expired += sweep().Expired; expired != sessions {
		t.Errorf("expired %d times, want %d", expired, sessions)
	}
	for _, id := range ids {
		page, err := stores[0].ListEvents(t.Context(), storage.EventQuery{SessionID: id, After: "0", Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		var types []string
		for _, e := range page.Events {
			types = append(types, e.GetType())
		}
		if got := strings.Join(types, " "); got != "session:created session:expiring session:expired" {
			t.Fatalf("the log of %s: %s", id, got)
		}
	}
}
