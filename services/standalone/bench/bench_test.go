package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also what the children of these tests run.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == childName {
		if err := Child(context.Background(), os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m,
		// go-redis stops its batch workers after Close has returned.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9.(*AutoPipeliner).flusher"))
}

func program(t *testing.T) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, childName}
}

// TestEverythingIsMeasured runs the whole program on a budget that is only good
// for that.
func TestEverythingIsMeasured(t *testing.T) {
	dir := t.TempDir()
	docs, samples := filepath.Join(dir, "doc.md"), filepath.Join(dir, "bench.json")
	if err := os.WriteFile(docs, []byte("before\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, progress bytes.Buffer
	o := Options{Budget: 5 * time.Second, Rounds: 1, JSON: samples, Docs: docs, Program: program(t), Version: "test"}
	if err := Main(t.Context(), o, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	raw, err := os.ReadFile(samples)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Targets []struct {
			What, Mark string
		}
		Samples []struct {
			Comparison, Contender string
			Calls, Errors         int
			FirstError            string
			ItemsPerSecond        float64
		}
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Samples {
		// Under the race detector and on a busy machine a store may turn some
		// calls away; none at all would be a defect of the benchmark.
		if s.Calls == s.Errors || s.ItemsPerSecond <= 0 {
			t.Errorf("%s by %s: %d calls, %d failed with %s", s.Comparison, s.Contender, s.Calls, s.Errors, s.FirstError)
		}
	}
	needLonger := []string{"1,000,000", "10,000", "near-cache"}
	for _, v := range r.Targets {
		long := slices.ContainsFunc(needLonger, func(s string) bool { return strings.Contains(v.What, s) })
		if v.Mark == notMeasured && !long {
			t.Errorf("%s: %s", v.What, v.Mark)
		}
		if !strings.Contains(out.String(), v.What) {
			t.Errorf("the table does not have %s", v.What)
		}
	}
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n", "\nafter\n", out.String()} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document lost %q", want)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Error("the document keeps the old table")
	}
}

// TestNothingIsLeftBehind: a child ends with its parent's end of the pipe, and
// takes along what it had started.
func TestNothingIsLeftBehind(t *testing.T) {
	p, err := spawn(t.Context(), program(t), nil, "redis")
	if err != nil {
		t.Fatal(err)
	}
	if u, err := p.ask(askUsage); err != nil || u.CPU <= 0 || u.Goroutines == 0 {
		t.Errorf("used %+v, %v", u, err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	var d net.Dialer
	if conn, err := d.DialContext(t.Context(), "tcp", p.Redis); err == nil {
		_ = conn.Close()
		t.Error("Redis still answers")
	}
}

func TestAChildThatFailsSaysWhy(t *testing.T) {
	_, err := spawn(t.Context(), program(t), nil, "store", "--shards", "0")
	if err == nil || !strings.Contains(err.Error(), "--shards") {
		t.Errorf("%v: want --shards in it", err)
	}
	if _, err = spawn(t.Context(), program(t), nil, "nonsense"); err == nil {
		t.Error("a child of no kind starts")
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := Run(ctx, Options{Budget: time.Hour, Rounds: 1, Program: program(t)}, &bytes.Buffer{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v: want the context's error", err)
	}
}

func TestOptionsNameEveryMistake(t *testing.T) {
	err := Main(t.Context(), Options{}, nil, nil)
	for _, flag := range []string{"--budget", "--rounds"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%v: want %s in it", err, flag)
		}
	}
}

func TestStatistics(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.of); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.of, got, c.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("there is a median of nothing")
	}
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for p, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := percentile(hundred, p); got != want {
			t.Errorf("percentile %v: %d, want %d", p, got, want)
		}
	}
	if percentile(nil, 0.5) != 0 {
		t.Error("there is a percentile of nothing")
	}
	// The second round was disturbed on both sides; its ratio is as good as any.
	if got := overRounds([]float64{10, 1, 30}, []float64{5, 0.5, 10}, ratio); got != 2 {
		t.Errorf("ratio over rounds: %v, want 2", got)
	}
	if got := overRounds([]float64{10, 6}, []float64{0, 3}, ratio); got != 2 {
		t.Errorf("a round without a figure counts: %v, want 2", got)
	}
}

func TestMarks(t *testing.T) {
	for _, c := range []struct {
		figure float64
		most   bool
		want   string
	}{{1.5, false, met}, {1.49, false, missed}, {1.5, true, met}, {1.51, true, missed}, {math.NaN(), false, notMeasured}, {math.NaN(), true, notMeasured}} {
		v := target{Bound: 1.5, Most: c.most, Of: func(*Report) float64 { return c.figure }}.judge(nil)
		if v.Mark != c.want {
			t.Errorf("%v of 1.5, most %v: %s, want %s", c.figure, c.most, v.Mark, c.want)
		}
	}
}

func TestNumbersKeepThreeDigits(t *testing.T) {
	for f, want := range map[float64]string{0.123: "0.12", 12.34: "12.3", 999.6: "1,000", 1234567: "1,234,567", -1234: "-1,234", 100: "100"} {
		if got := number(f); got != want {
			t.Errorf("%v: %q, want %q", f, got, want)
		}
	}
	if number(math.NaN()) != "-" {
		t.Error("the unknown has a spelling of its own")
	}
	raw, err := json.Marshal([]figure{unknown, 2})
	if err != nil || string(raw) != "[null,2]" {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestTableLinesUp(t *testing.T) {
	var b strings.Builder
	writeTable(&b, [][]string{{"a", "µs"}, {"long", "1"}})
	if want := "| a    | µs |\n|------|----|\n| long | 1  |\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestMonitorLines(t *testing.T) {
	got, err := monitored("+1795526267.536 [0 127.0.0.1:5] \"evalsha\" \"a\\\"b\\\\\" \"\\x00\\n\" \"\"\r\n")
	if want := []string{"evalsha", `a"b\`, "\x00\n", ""}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if got, err := monitored("+1795526267.536 [0 lua] \"get\" \"x\"\r\n"); got != nil || err != nil {
		t.Errorf("%q, %v: what a script does is not what a client sends", got, err)
	}
	if _, err := monitored("-ERR\r\n"); err == nil {
		t.Error("an error is read as a command")
	}
}

// TestDriveCountsWhatFails: failures are counted, kept out of the times, and a
// caller for whom nothing works leaves.
func TestDriveCountsWhatFails(t *testing.T) {
	bad := errors.New("bad")
	l := drive(t.Context(), 2, time.Hour, func(_ context.Context, worker, n int) error {
		if worker == 1 || n >= 10 {
			return bad
		}
		return nil
	})
	if l.Calls != 10+2*hopeless || l.Errors != 2*hopeless || len(l.Sorted) != 10 || !errors.Is(l.First, bad) {
		t.Errorf("calls %d, errors %d, times %d, first %v", l.Calls, l.Errors, len(l.Sorted), l.First)
	}
}

func TestMetricsAreAddedUp(t *testing.T) {
	text := "# HELP stoker_long_polls x\nstoker_long_polls{a=\"b\"} 2\nstoker_long_polls{a=\"c\"} 3\nstoker_long_polls_more 9\n"
	if n, err := metricSum(strings.NewReader(text), "stoker_long_polls"); n != 5 || err != nil {
		t.Errorf("%d, %v, want 5", n, err)
	}
	info := "cmdstat_xread:calls=12,usec=3\r\ncmdstat_xreadgroup:calls=7,usec=3\r\n"
	if a, b := calls(info, "xread"), calls(info, "xrange"); a != 12 || b != 0 {
		t.Errorf("%v and %v calls, want 12 and 0", a, b)
	}
	if v, err := fields("a:1.5\r\nb:2\r\n", "b", "a"); err != nil || !slices.Equal(v, []float64{2, 1.5}) {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := fields("a:1\r\n", "b"); err == nil {
		t.Error("a field that is not there has a value")
	}
}

// TestSiblingsAreOnTheSameShard: shard and last character stay, and no two are
// alike.
func TestSiblingsAreOnTheSameShard(t *testing.T) {
	const id = "aaqk2ymqklwlkjbjezdoeofzzxzqm"
	seen := map[string]bool{}
	for n := range 100_000 {
		s := sibling(id, n)
		if len(s) != len(id) || s[:5] != id[:5] || s[len(s)-1] != id[len(id)-1] || seen[s] {
			t.Fatalf("sibling %d of %s: %s", n, id, s)
		}
		seen[s] = true
	}
	call := []any{"evalsha", "k", id, "user\x00p\x00" + id}
	if got := renamed(call, id, "other"); !slices.Equal(got, []any{"evalsha", "k", "other", "user\x00p\x00other"}) || call[2] != id {
		t.Errorf("%q from %q", got, call)
	}
}

// TestUntilGivesUp: what does not come is an error of its own, and what fails
// is not waited for.
func TestUntilGivesUp(t *testing.T) {
	if err := until(t.Context(), time.Millisecond, func() (bool, error) { return false, nil }); !errors.Is(err, errNotYet) {
		t.Errorf("%v, want that it did not come", err)
	}
	bad := errors.New("bad")
	if err := until(t.Context(), time.Hour, func() (bool, error) { return false, bad }); !errors.Is(err, bad) {
		t.Errorf("%v, want what failed", err)
	}
}

// TestGrownIsTheWorse: of two comparisons, and of one where the other is
// unknown.
func TestGrownIsTheWorse(t *testing.T) {
	r := newReport(Options{}, time.Now())
	add := func(c, who string, cpu, redis float64) {
		r.add(comparison{Name: c}, sample{Comparison: c, Contender: who, Callers: usual, CPU: figure(cpu), RedisCPU: figure(redis)})
	}
	if !math.IsNaN(grown(r)) {
		t.Error("nothing has grown")
	}
	add(ofGetBySessions, sessions(1000), 10, 10)
	add(ofGetBySessions, sessions(1_000_000), 10, 20)
	if got := grown(r); got != 1.5 {
		t.Errorf("grown %v, want 1.5", got)
	}
	add(ofExtendBySessions, sessions(1000), 10, 10)
	add(ofExtendBySessions, sessions(1_000_000), 30, 10)
	if got := grown(r); got != 2 {
		t.Errorf("grown %v, want 2", got)
	}
}
