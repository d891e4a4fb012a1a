//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/encoding/protojson"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// TestRollingUpgrade: replicas of the version before and of this one run side by
// side on one Redis while processes are replaced one by one, there and back again.
// Nothing acknowledged is lost, no live session is missing or over, calls fail
// with UNAVAILABLE only, and only while a process is replaced. Then a repair
// raises the format of the data, from when on the old version does not start.
func TestRollingUpgrade(t *testing.T) {
	u := newUpgrade(t)
	oldActivity, oldMetrics := startActivity(t, oldVersion, u.a)
	u.prepare(t)
	stop := u.startLoad()
	defer func() { stop() }()
	const census = "--census-interval=300ms" // the background repair runs often, beside the old version
	newMetrics := ""
	shares := func(least, most int) func() bool {
		return func() bool { n := len(shardsOf(t, newMetrics)); return n >= least && n <= most }
	}
	for _, s := range []struct {
		name string
		do   func()
	}{
		{"all old", func() {}},
		{"A is new, with the old activity service on it", func() { u.replace(t, u.a, newVersion, syscall.SIGTERM, census) }},
		{"B is killed, and starts again as the old version", func() { u.replace(t, u.b, oldVersion, syscall.SIGKILL) }},
		{"a new activity service joins, on the old B", func() {
			_, newMetrics = startActivity(t, newVersion, u.b)
			eventually(t, 20*time.Second, "both activity services have shards", func() bool {
				return shares(1, upgradeShards-1)() && len(shardsOf(t, oldMetrics)) > 0
			})
		}},
		{"A is rolled back, with pending writes of the new version", func() { u.replaceInOutage(t, oldVersion) }},
		{"A is new again, with pending writes of the old version", func() { u.replaceInOutage(t, newVersion, census) }},
		{"the old activity service ends", func() {
			oldActivity.stop(t, syscall.SIGTERM)
			eventually(t, 20*time.Second, "the new activity service has every shard", shares(upgradeShards, upgradeShards))
		}},
		{"B is new", func() { u.replace(t, u.b, newVersion, syscall.SIGTERM, census) }},
	} {
		s.do()
		u.runStep(t, s.name, 2500*time.Millisecond)
	}
	if f := u.format(t); f != "1" {
		t.Errorf("the format of the data is %s before the repair, want 1", f)
	}
	stop()
	stop = func() {}
	u.checkKept(t, 2*keptSessions)

	c := u.repairBesideOld(t)

	stop = u.startLoad()
	u.runStep(t, "all new, beside an old one that runs on", 2500*time.Millisecond)
	stop()
	stop = func() {}
	for _, id := range u.kept.mine { // or they would expire while they are checked
		u.kept.end(t.Context(), id)
	}
	u.checkServes(t, c)
	u.checkFloors(t)

	u.load.awaitRest(t, sessionv1.NewAdminServiceClient(u.a.conn.Load()), u.seeds)
	u.load.awaitShortLived(t)
	u.load.checkShards(t, upgradeShards, func(shard int) rawShard { return readServerShard(t, u.raw, shard) })
	if lost := u.load.lost(t, c.store()); lost > 0 {
		t.Errorf("%d acknowledged writes are lost, as the old version reads them", lost)
	}
	u.load.report(t, "as the old version reads it")
	u.checkWarnings(t)
	u.checkRequestKeys(t)
}

// startActivity starts an activity service of a version on a replica of the store,
// and returns where its metrics are.
func startActivity(t *testing.T, v version, r *upgradeReplica) (p *process, metrics string) {
	t.Helper()
	admin := freeAddr(t)
	p = startBinary(t, v.binary(t, "activity"), "--grpc-addr", freeAddr(t), "--admin-addr", admin, "--store-addr", r.grpc, "--flush-interval", "200ms")
	ready(t, "http://"+admin+"/readyz", p)
	return p, "http://" + admin + "/metrics"
}

// runStep lets the load run for a while with the deployment as it is.
func (u *upgrade) runStep(t *testing.T, name string, d time.Duration) {
	t.Helper()
	begin := u.load.writes()
	time.Sleep(d)
	t.Logf("%s: A %s, B %s; %s", name, u.a.runs(), u.b.runs(), figures(u.load.startPhase()))
	if n := u.load.writes() - begin; n < 150 {
		t.Errorf("%s: %d writes were acknowledged, want 150 or more", name, n)
	}
	u.load.report(t, name)
}

func (u *upgrade) format(t *testing.T) string {
	t.Helper()
	f, err := u.raw.HGet(t.Context(), "stoker:{s0}:meta", "format").Result()
	must(t, err)
	return f
}

// repairBesideOld starts an old store, which runs on, and repairs twice. From then
// on no other old store starts. It returns the one that runs.
func (u *upgrade) repairBesideOld(t *testing.T) *upgradeReplica {
	t.Helper()
	// Without the census, so that what the repair restores is known.
	u.replace(t, u.a, newVersion, syscall.SIGTERM, "--census-interval=0")
	u.replace(t, u.b, newVersion, syscall.SIGTERM, "--census-interval=0")
	c := newUpgradeReplica(t, "C", u.b.args...)
	c.start(t, oldVersion)
	const made = 20
	u.createWith(t, c, made, "before-the-repair")

	// The old version lets a request key expire with its session's deadline and
	// moves it along; this one lets it expire after the session's last possible
	// deadline. The repair prolongs those of the old version, and counts their
	// sessions. Nothing else was damaged.
	before := u.requestKeys(t)
	r := repairWith(t, u.b.grpc)
	prolonged := 0
	for id, k := range u.requestKeys(t) {
		if k.expires > before[id].expires {
			prolonged++
		}
	}
	t.Logf("the repair compared %d sessions, restored %d, of which it prolonged %d request keys, and dropped %d entries", r.GetSessions(), r.GetRestored(), prolonged, r.GetDropped())
	if !r.GetDone() || r.GetSessions() < upgradeSeeds || int(r.GetRestored()) != prolonged || prolonged < made || r.GetDropped() != 0 || r.GetSkipped() != 0 {
		t.Errorf("the repair: %v, want it done, %d or more restored by request keys alone, and none dropped", r, made)
	}
	if again := repairWith(t, u.b.grpc); !again.GetDone() || again.GetRestored() != 0 || again.GetDropped() != 0 {
		t.Errorf("the second repair: %v, want none restored or dropped", again)
	}
	if st := u.b.status(t).GetDataFormat(); st != "2" || u.format(t) != "2" {
		t.Errorf("after the repair the status has format %q, Redis %q, want 2", st, u.format(t))
	}

	p := startBinary(t, oldVersion.binary(t, "sessionstore"), append([]string{"--grpc-addr", freeAddr(t), "--admin-addr", freeAddr(t)}, u.b.args...)...)
	select {
	case <-p.done:
		if out := p.out.String(); p.cmd.ProcessState.Success() || !strings.Contains(out, "this Redis holds format 2, this program reads format 1") {
			t.Errorf("the old version ended with %v and printed %q, want a refusal that names the formats", p.cmd.ProcessState, out)
		}
	case <-time.After(10 * time.Second):
		t.Error("the old version runs on data of format 2")
	}
	return c
}

// repairWith runs `stoker repair` and returns what it printed.
func repairWith(t *testing.T, addr string) *sessionv1.RepairIndexesResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, newVersion.binary(t, "stoker"), "repair", "--addr", addr)
	var progress bytes.Buffer
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("stoker repair: %v\n%s%s", err, out, progress.String())
	}
	var r sessionv1.RepairIndexesResponse
	if err := protojson.Unmarshal(out, &r); err != nil {
		t.Fatalf("stoker repair printed %q: %v", out, err)
	}
	return &r
}

// checkServes makes sure that an old store that runs on serves data of format 2.
func (u *upgrade) checkServes(t *testing.T, c *upgradeReplica) {
	t.Helper()
	u.createWith(t, c, 8, "after-the-repair")
	w := &writer{ledger: u.load.ledger, store: c.store(), user: "served-by-old"}
	for range 60 {
		if w.step(t.Context()); w.err != nil {
			t.Errorf("an old store that runs on: %v", w.err)
			return
		}
	}
	n := u.load.writes()
	if lost := u.load.lost(t, c.store()); lost > 0 {
		t.Errorf("%d of %d acknowledged writes are not to be read from it", lost, n)
	}
}

// checkFloors makes sure that the load has met what it is there for.
func (u *upgrade) checkFloors(t *testing.T) {
	t.Helper()
	u.load.counting.Lock()
	defer u.load.counting.Unlock()
	t.Logf("in all: %d writes journaled; %s", u.load.journaled, figures(u.load.total))
	t.Logf("between versions: %v creations repeated, %v updates with an etag, %v with an old one refused", u.cross.repeated, u.cross.updated, u.cross.refused)
	for op, least := range map[string]int{
		"append": 1000, "update": 300, "UpdateSession": 200, "create": 300, "CreateSession with requestId": 150, "end": 150, "delete": 60,
		"ExtendTTL": 300, "BatchExtendTTL": 150, "RevokeUserSessions": 30, "SetPolicy": 60,
		"GetSession": 500, "ListEvents": 150, "ListSessions by user": 60, "ListSessions by project": 20, "ListActiveUsers": 20, "Feed": 100,
	} {
		if n := u.load.total[op]; n == nil || n.ok < least {
			t.Errorf("%s: %+v, want %d answers or more", op, n, least)
		}
	}
	for _, pair := range []string{"old then new", "new then old"} {
		if u.cross.repeated[pair] < 20 || u.cross.updated[pair] < 20 || u.cross.refused[pair] < 10 {
			t.Errorf("%s: %d creations repeated, %d updates, %d refused; want 20, 20 and 10 or more", pair, u.cross.repeated[pair], u.cross.updated[pair], u.cross.refused[pair])
		}
	}
}

// requestKey is a request key that names a live session, and when it expires and
// when the session's record does, in ms.
type requestKey struct{ expires, session int64 }

// requestKeys reads the request keys of all live sessions that have one.
func (u *upgrade) requestKeys(t *testing.T) map[string]requestKey {
	t.Helper()
	out := map[string]requestKey{}
	for shard := range upgradeShards {
		prefix := fmt.Sprintf("stoker:{s%d}:", shard)
		for id, s := range readServerShard(t, u.raw, shard).sessions {
			if s.state != "0" {
				continue
			}
			request, err := u.raw.HGet(t.Context(), prefix+"session:"+id, "req").Result()
			if err != nil && !errors.Is(err, goredis.Nil) {
				t.Fatal(err)
			}
			if request == "" {
				continue
			}
			key := prefix + "request:" + request
			if named, err := u.raw.Get(t.Context(), key).Result(); err != nil || named != id {
				t.Errorf("the request key of the live session %s names %q: %v", id, named, err)
				continue
			}
			out[id] = requestKey{
				expires: u.raw.PExpireTime(t.Context(), key).Val().Milliseconds(),
				session: u.raw.PExpireTime(t.Context(), prefix+"session:"+id).Val().Milliseconds(),
			}
		}
	}
	return out
}

// checkRequestKeys makes sure that a request key outlasts its session: after it, a
// creation that is repeated would make another session.
func (u *upgrade) checkRequestKeys(t *testing.T) {
	t.Helper()
	keys := u.requestKeys(t)
	for id, k := range keys {
		if k.expires < k.session || k.session <= 0 {
			t.Errorf("the request key of the live session %s expires at %d, its record at %d", id, k.expires, k.session)
		}
	}
	if len(keys) < 60 {
		t.Errorf("%d live sessions have a request id, want 60 or more", len(keys))
	}
}

// checkWarnings makes sure that session:expiring was given once for a deadline at
// most, and once for the last deadline of each session that has expired, unless an
// outage was in the time when it was due.
func (u *upgrade) checkWarnings(t *testing.T) {
	t.Helper()
	judged, given := 0, 0
	for shard := range upgradeShards {
		for id, s := range readServerShard(t, u.raw, shard).sessions {
			below, err := u.raw.HGet(t.Context(), fmt.Sprintf("stoker:{s%d}:session:%s", shard, id), "below").Result()
			must(t, err)
			ms, err := strconv.ParseInt(below, 10, 64)
			must(t, err)
			from := time.UnixMilli(s.expire - ms)
			warned := map[string]int{}
			for _, e := range allEvents(t, u.load.store, id) {
				switch at := e.GetTime().AsTime(); e.GetType() {
				case "session:created", "session:extended":
					if at.After(from) {
						from = at
					}
				case "session:expiring":
					given++
					warned[e.GetData().GetStructValue().GetFields()["expireTime"].GetStringValue()]++
				}
			}
			for deadline, n := range warned {
				if at, err := time.Parse(time.RFC3339Nano, deadline); n != 1 || err != nil {
					t.Errorf("%s: %d session:expiring for the deadline %v (%v)", id, n, at, err)
				}
			}
			deadline := time.UnixMilli(s.expire).UTC()
			if s.state != "2" || !u.undisturbed(from, deadline) {
				continue
			}
			judged++
			found := 0
			for text, n := range warned {
				if at, _ := time.Parse(time.RFC3339Nano, text); at.Equal(deadline) {
					found += n
				}
			}
			if found != 1 {
				t.Errorf("%s expired at %v with %d session:expiring for that deadline, due from %v on", id, deadline, found, from)
			}
		}
	}
	t.Logf("%d session:expiring, %d of them for the last deadline of a session that expired", given, judged)
	if judged < 100 {
		t.Errorf("%d sessions have expired of which the warning can be judged, want 100 or more", judged)
	}
}

// undisturbed reports whether a time is long enough to be swept in, and meets no
// outage.
func (u *upgrade) undisturbed(from, to time.Time) bool {
	for _, o := range u.outages {
		if from.Before(o[1].Add(time.Second)) && to.After(o[0]) {
			return false
		}
	}
	return to.Sub(from) > 500*time.Millisecond
}
