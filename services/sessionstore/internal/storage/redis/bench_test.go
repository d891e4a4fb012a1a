package redis_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/livinguniverse/stoker/pkg/redistest"
	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/sessionid"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage/redis"
)

// benchCallers is how many callers the benchmarks have at a time.
const benchCallers = 64

// rig is a store with sessions in it, on a server of its own, which is started
// with the options in STOKER_BENCH_REDIS.
type rig struct {
	s      *redis.Store
	client *goredis.Client
	ids    []string
}

func newRig(b *testing.B, sessions int) *rig {
	b.Helper()
	server := redistest.Start(b, strings.Fields(os.Getenv("STOKER_BENCH_REDIS"))...)
	s := open(b, server.URL(), func(o *redis.Options) { o.Shards, o.MaxEvents, o.Timeout = 64, 1000, 5*time.Second })
	r := &rig{s: s, client: goredis.NewClient(&goredis.Options{Addr: server.Addr}), ids: make([]string, sessions)}
	b.Cleanup(func() { _ = r.client.Close() })
	p := lifetime.DefaultPolicy()
	now := time.Now().UnixMilli()
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < sessions; i += 32 {
				r.ids[i] = sessionid.New(i % 64)
				_, _, err := s.Create(b.Context(), &sessionv1.Session{
					Id: r.ids[i], User: fmt.Sprint("user-", i), Project: "bench", Revision: 1,
					Labels:     map[string]string{"client": "web", "region": "eu-central", "tier": "standard"},
					Data:       structpb.NewStringValue(string(bytes.Repeat([]byte("stoker "), 28))),
					CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
					ExpireTime: lifetime.Time(lifetime.Deadline(now, p)), TtlPolicy: p,
				}, "")
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return r
}

var cpuOf = regexp.MustCompile(`used_cpu_(?:sys|user):([0-9.]+)`)

// redisCPU is what the server has used, in µs.
func (r *rig) redisCPU(b *testing.B) float64 {
	b.Helper()
	info, err := r.client.Info(context.Background(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	sum := 0.0
	for _, m := range cpuOf.FindAllStringSubmatch(info, -1) {
		s, _ := strconv.ParseFloat(m[1], 64)
		sum += s
	}
	return sum * 1e6
}

// ownCPU is what this process has used, in µs.
func ownCPU() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}

// measure runs op from many callers, and reports CPU and allocations for each of
// the items that an op stands for.
func (r *rig) measure(b *testing.B, items int, op func(n int) error) {
	b.Helper()
	for n := range 100 {
		if err := op(n); err != nil { // teaches scripts, opens connections
			b.Fatal(err)
		}
	}
	_ = r.client.ConfigResetStat(context.Background())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	own, server := ownCPU(), r.redisCPU(b)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range benchCallers {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := op(int(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	runtime.ReadMemStats(&after)
	n := float64(b.N * items)
	b.ReportMetric((ownCPU()-own)/n, "cpu-µs/item")
	b.ReportMetric((r.redisCPU(b)-server)/n, "redis-µs/item")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/item")
	b.ReportMetric(n/b.Elapsed().Seconds(), "items/s")
}

func (r *rig) id(n int) string { return r.ids[n%len(r.ids)] }

func BenchmarkGet(b *testing.B) {
	r := newRig(b, 1000)
	r.measure(b, 1, func(n int) error {
		_, err := r.s.Get(context.Background(), r.id(n))
		return err
	})
}

// BenchmarkSessions reads and extends with few sessions and with many. It takes
// 3 KB of memory for each.
func BenchmarkSessions(b *testing.B) {
	for _, sessions := range []int{1000, 100_000, 1_000_000} {
		b.Run(strconv.Itoa(sessions), func(b *testing.B) {
			if sessions > 100_000 && testing.Short() {
				b.Skip("takes a minute to begin")
			}
			r := newRig(b, sessions)
			for from := 0; from < sessions; from += 1000 {
				if err := r.extend(from, 1000); err != nil { // the first of each is a new decision
					b.Fatal(err)
				}
			}
			b.Run("get", func(b *testing.B) {
				r.measure(b, 1, func(n int) error {
					_, err := r.s.Get(context.Background(), r.id(n*7919))
					return err
				})
			})
			b.Run("extend", func(b *testing.B) {
				r.measure(b, 1, func(n int) error { return r.extend(n*7919, 1) })
			})
		})
	}
}

// BenchmarkExtend reports activity that changes no deadline, as almost all does.
func BenchmarkExtend(b *testing.B) {
	r := newRig(b, 1000)
	r.measure(b, 1, func(n int) error { return r.extend(n, 1) })
}

func BenchmarkExtend200(b *testing.B) {
	r := newRig(b, 1000)
	r.measure(b, 200, func(n int) error { return r.extend(n*200, 200) })
}

func (r *rig) extend(from, items int) error {
	list := make([]storage.Activity, items)
	for i := range list {
		list[i] = storage.Activity{SessionID: r.id(from + i), Kind: "input"}
	}
	res, err := r.s.Extend(context.Background(), list)
	if err != nil {
		return err
	}
	for _, x := range res {
		if x.Err != nil {
			return x.Err
		}
	}
	return nil
}

// BenchmarkAppend50 appends to logs that are full, and to feeds that are swept
// now and then.
func BenchmarkAppend50(b *testing.B) {
	r := newRig(b, 64)
	ctx, cancel := context.WithCancel(b.Context())
	var sweeps sync.WaitGroup
	sweeps.Go(func() {
		for ctx.Err() == nil {
			_, _ = r.s.Sweep(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	defer sweeps.Wait()
	defer cancel()
	r.measure(b, 50, func(n int) error {
		list := make([]*sessionv1.Event, 50)
		for i := range list {
			list[i] = &sessionv1.Event{
				Id: sessionid.New(0), Type: "input:text", Source: "bench", Time: lifetime.Time(time.Now().UnixMilli()),
				Data: structpb.NewStringValue(string(bytes.Repeat([]byte("stoker "), 14))),
			}
		}
		_, err := r.s.Append(context.Background(), r.id(n), list)
		return err
	})
}

// BenchmarkFloor is what Redis and go-redis take for the same with nothing of
// ours: a hash of as many fields, and two XADDs.
func BenchmarkFloor(b *testing.B) {
	r := newRig(b, 1000)
	auto, err := r.client.AsyncAutoPipeline()
	if err != nil {
		b.Fatal(err)
	}
	defer auto.Close()
	do := func(args ...any) error {
		ctx := context.Background()
		cmd := goredis.NewCmd(ctx, args...)
		if err := auto.Submit(ctx, cmd).Wait(); err != nil {
			return err
		}
		return cmd.Err()
	}
	for i := range 1000 {
		if err := r.client.HSet(b.Context(), fmt.Sprint("plain:", i), "a", 1, "b", 2, "c", 3, "d", bytes.Repeat([]byte("stoker "), 28),
			"e", 1, "f", 2, "g", 3, "h", 4, "i", "abcdefgabcdefgabcdefg", "j", 1, "k", 2, "l", 3, "m", 4).Err(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("hgetall", func(b *testing.B) {
		r.measure(b, 1, func(n int) error { return do("hgetall", fmt.Sprint("plain:", n%1000)) })
	})
	b.Run("two xadds", func(b *testing.B) {
		raw := bytes.Repeat([]byte("stoker "), 22)
		r.measure(b, 1, func(n int) error {
			first := make(chan error, 1)
			go func() {
				first <- do("xadd", fmt.Sprint("log:", n%1000), "maxlen", "~", 1000, "*", "i", "abcdefghijklmnopqrst", "e", raw)
			}()
			if err := do("xadd", "feed", "maxlen", "~", 1000, "*", "s", "abcdefghijklmnopqrstabcdefg", "e", raw); err != nil {
				return err
			}
			return <-first
		})
	})
}

// newBenchSession is a session as the service makes them, with a policy.
func newBenchSession(n int, user string, p *sessionv1.TTLPolicy) *sessionv1.Session {
	now := time.Now().UnixMilli()
	p = lifetime.Resolve(p, lifetime.DefaultPolicy())
	return &sessionv1.Session{
		Id: sessionid.New(n % 64), User: user, Project: "bench", Revision: 1,
		Labels:     map[string]string{"client": "web", "region": "eu-central", "tier": "standard"},
		CreateTime: lifetime.Time(now), UpdateTime: lifetime.Time(now), LastActivityTime: lifetime.Time(now),
		ExpireTime: lifetime.Time(lifetime.Deadline(now, p)), TtlPolicy: p,
	}
}

// BenchmarkChanges makes each change of a session by itself.
func BenchmarkChanges(b *testing.B) {
	every := &sessionv1.TTLPolicy{
		Strategy: sessionv1.TTLPolicy_EVERY_ACTIVITY, MaxExtensions: proto.Int32(1_000_000), BaseTtl: durationpb.New(time.Hour),
		Extension: durationpb.New(time.Second),
	}
	for _, c := range []struct {
		name  string
		setUp func(b *testing.B, r *rig) // before it is measured
		op    func(r *rig, n int) error
	}{
		{"create", nil, func(r *rig, n int) error {
			_, _, err := r.s.Create(context.Background(), newBenchSession(n, fmt.Sprint("u", n), nil), "")
			return err
		}},
		{"create by request", nil, func(r *rig, n int) error {
			_, _, err := r.s.Create(context.Background(), newBenchSession(n, fmt.Sprint("u", n), nil), fmt.Sprint(n))
			return err
		}},
		{"append", nil, func(r *rig, n int) error {
			_, err := r.s.Append(context.Background(), r.id(n), []*sessionv1.Event{{Id: fmt.Sprint("e", n), Type: "input:text"}})
			return err
		}},
		{"extend each time", func(b *testing.B, r *rig) {
			b.Helper()
			for i := range r.ids {
				in := newBenchSession(i, "ann", every)
				if _, _, err := r.s.Create(b.Context(), in, ""); err != nil {
					b.Fatal(err)
				}
				r.ids[i] = in.GetId()
			}
		}, func(r *rig, n int) error {
			res, err := r.s.Extend(context.Background(), []storage.Activity{{SessionID: r.id(n), Kind: "input", EventID: fmt.Sprint("e", n), Time: time.Now()}})
			if err == nil {
				err = res[0].Err
			}
			return err
		}},
		{"end", createForEach, func(r *rig, n int) error {
			_, err := r.s.End(context.Background(), r.id(n), "done")
			return err
		}},
		{"delete", createForEach, func(r *rig, n int) error {
			_ = r.s.Delete(context.Background(), r.id(n)) // the first hundred are deleted twice
			return nil
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, 1000)
			if c.setUp != nil {
				c.setUp(b, r)
			}
			r.measure(b, 1, func(n int) error { return c.op(r, n) })
		})
	}
}

// createForEach makes a session for each operation that is measured.
func createForEach(b *testing.B, r *rig) {
	b.Helper()
	r.ids = make([]string, b.N+1)
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < len(r.ids); i += 32 {
				in := newBenchSession(i, fmt.Sprint("u", i), nil)
				if _, _, err := r.s.Create(b.Context(), in, ""); err != nil {
					b.Error(err)
					return
				}
				r.ids[i] = in.GetId()
			}
		})
	}
	wg.Wait()
}

// BenchmarkRevoke ends 1,000 sessions of a user.
func BenchmarkRevoke(b *testing.B) {
	benchThousand(b, time.Hour, func(r *rig) error {
		n, err := r.s.RevokeUser(context.Background(), "bench", "ann", nil, "")
		if err == nil && n != 1000 {
			err = fmt.Errorf("revoked %d of 1000", n)
		}
		return err
	})
}

// BenchmarkSweep expires 1,000 sessions that are due at once.
func BenchmarkSweep(b *testing.B) {
	benchThousand(b, time.Millisecond, func(r *rig) error {
		n, err := r.s.Sweep(context.Background())
		if err == nil && n.Expired != 1000 {
			err = fmt.Errorf("expired %d of 1000", n.Expired)
		}
		return err
	})
}

// benchThousand measures what an operation takes for each of 1,000 sessions that
// are made for it.
func benchThousand(b *testing.B, ttl time.Duration, op func(r *rig) error) {
	b.Helper()
	r := newRig(b, 1)
	server := 0.0
	for b.Loop() {
		b.StopTimer()
		var wg sync.WaitGroup
		for w := range 20 {
			wg.Go(func() {
				for i := w; i < 1000; i += 20 {
					in := newBenchSession(sessionid.ShardOf("bench", "ann", "", 64), "ann", &sessionv1.TTLPolicy{BaseTtl: durationpb.New(ttl), ExtendBelow: durationpb.New(0)})
					if _, _, err := r.s.Create(context.Background(), in, ""); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		time.Sleep(5 * time.Millisecond) // the deadlines of the short ones pass
		before := r.redisCPU(b)
		b.StartTimer()
		if err := op(r); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		server += r.redisCPU(b) - before
		b.StartTimer()
	}
	n := float64(b.N * 1000)
	b.ReportMetric(server/n, "redis-µs/item")
	b.ReportMetric(n/b.Elapsed().Seconds(), "items/s")
}
