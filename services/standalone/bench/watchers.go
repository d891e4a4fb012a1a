package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Probes about those who wait.
const (
	probeWatchBytes = "bytes of memory of each idle watcher, on gateway and store together"
	probeWatchLeft  = "goroutines left after the watchers have gone"
	probeFeedReads  = "feed reads a second with all watchers, of those without any"
	probeLogReads   = "Redis commands a second of each idle watcher"
	probeWatchers   = "watchers, half long polls and half streams"
	probeStartup    = "startup of stoker run to the first answer"
)

const (
	watchersMost = 10_000
	// fewWatchers are for short budgets.
	fewWatchers = 200
	// spareFiles is what a process needs beside its connections.
	spareFiles = 500
	watchGroup = 500
	// settleMost and settleLeast bound how long watchers may take to come and to
	// go, an eighth of the budget.
	settleMost  = 40 * time.Second
	settleLeast = 10 * time.Second
	// watchWindow is how long reads are counted, at most.
	watchWindow = 3 * time.Second
)

// watching measures what long polls and streams cost that wait for nothing:
// half of each, on one gateway and store.
func (b *bench) watching(ctx context.Context, r *redis) error {
	n := b.watchers()
	s, err := b.lab.serve(ctx, "run", "--redis-url", r.url(5), "--max-waiters", "100000")
	if err != nil {
		return err
	}
	f, err := newFixture(ctx, s, r, pool/10)
	if err != nil {
		return err
	}
	polls, err := pollsOf(ctx, f)
	if err != nil {
		return err
	}
	before, err := s.ask(askClean)
	if err != nil {
		return err
	}
	window := min(watchWindow, b.opts.Budget/10)
	quiet, _, err := reads(ctx, r, window)
	if err != nil {
		return err
	}
	b.say("%d watchers come, which may take %v", n, b.settle())
	all := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range all {
			_ = c.Close()
		}
	}()
	metrics, came, arrived := b.lab.browser(), 0, time.Now().Add(b.settle())
	for i := range n {
		path := strings.TrimPrefix(polls[i%len(polls)], "http://"+s.HTTP)
		if path += "&wait=30s"; i%2 == 1 {
			path = strings.Replace(path, "/events?", "/events:watch?", 1)
			path = strings.TrimSuffix(path, "&wait=30s")
		}
		c, err := waitOn(ctx, s.HTTP, path)
		if err != nil {
			return fmt.Errorf("watcher %d: %w", i, err)
		}
		all = append(all, c)
		// What is measured is waiting, not a stampede, which the store would turn
		// away in part: they come in groups.
		if len(all)%watchGroup == 0 || len(all) == n {
			err = until(ctx, time.Until(arrived), func() (_ bool, err error) {
				came, err = waiting(ctx, metrics, s)
				return came >= len(all), err
			})
		}
		if err != nil && !errors.Is(err, errNotYet) {
			return err
		}
	}
	if errors.Is(err, errNotYet) {
		b.note("Only %d of %d watchers wait after %v; the polls were answered %v.", came, n, b.settle(), answered(all))
	}
	with, err := s.ask(askClean)
	if err != nil {
		return err
	}
	feed, other, err := reads(ctx, r, window)
	if err != nil {
		return err
	}
	for _, c := range all {
		_ = c.Close()
	}
	left := 0
	err = until(ctx, b.settle(), func() (bool, error) {
		u, err := s.ask(askUsage)
		left = max(0, u.Goroutines-before.Goroutines)
		return left <= leftAllowed, err
	})
	if err != nil && !errors.Is(err, errNotYet) {
		return err
	}
	b.report.found(probeWatchBytes, "B", float64(with.HeapBytes+with.StackBytes-before.HeapBytes-before.StackBytes)/float64(n))
	b.report.found(probeWatchLeft, "", float64(left))
	b.report.found(probeFeedReads, "x", feed/quiet)
	b.report.found(probeLogReads, "", other/float64(n))
	b.report.found(probeWatchers, "", float64(min(n, came)))
	return b.lab.end(s.process)
}

// leftAllowed is noise: connections that close, the collector's workers.
const leftAllowed = 20

// watchers is how many there may be: by budget, and by the files that a process
// may open (Go itself raises the limit as far as it may).
func (b *bench) watchers() int {
	n := watchersMost
	if b.opts.Budget < time.Minute {
		n = fewWatchers
		b.note("Only %d watchers: %d need a budget of 1m.", n, watchersMost)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < uint64(n+spareFiles) {
		n = max(1, int(limit.Cur)-spareFiles)
		b.note("Only %d watchers: a process may open %d files.", n, limit.Cur)
	}
	return n
}

// waitOn sends a request and does not wait for its answer.
func waitOn(ctx context.Context, addr, path string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", path, addr); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// answered counts the first answers of long polls, by status; "none" is what
// they should have.
func answered(all []net.Conn) map[string]int {
	out := map[string]int{}
	for i := 0; i < len(all); i += 2 {
		line := make([]byte, len("HTTP/1.1 200"))
		_ = all[i].SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := io.ReadFull(all[i], line); err != nil {
			line = []byte("none")
		}
		out[string(line)]++
	}
	return out
}

// waiting is how many the store says wait now, streams included.
func waiting(ctx context.Context, c *http.Client, s *service) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.HTTP+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return metricSum(resp.Body, "stoker_long_polls")
}

// metricSum adds up a metric in the Prometheus text format.
func metricSum(in io.Reader, want string) (int, error) {
	sum := 0.0
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ = strings.Cut(name, "{")
		if name != want {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return int(sum), lines.Err()
}

var errNotYet = errors.New("not within the time that it may take")

func (b *bench) settle() time.Duration { return min(settleMost, max(settleLeast, b.opts.Budget/8)) }

// until asks again and again, for at most d.
func until(ctx context.Context, d time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d, errNotYet)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// reads counts for a while how often the feeds are read, and what commands
// there are to read logs, a second.
func reads(ctx context.Context, r *redis, d time.Duration) (feed, logs float64, err error) {
	count := func() (feed, logs float64, err error) {
		info, err := r.admin.Info(ctx, "commandstats").Result()
		if err != nil {
			return 0, 0, err
		}
		return calls(info, "xread"), calls(info, "hmget") + calls(info, "xrange"), nil
	}
	feed0, logs0, err := count()
	if err != nil {
		return 0, 0, err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	feed1, logs1, err := count()
	return (feed1 - feed0) / d.Seconds(), (logs1 - logs0) / d.Seconds(), err
}

// calls is how often a command was called; 0 for never.
func calls(info, command string) float64 {
	_, rest, ok := strings.Cut(info, "cmdstat_"+command+":calls=")
	if !ok {
		return 0
	}
	text, _, _ := strings.Cut(rest, ",")
	n, _ := strconv.ParseFloat(text, 64)
	return n
}

// starting measures how long `stoker run` takes to answer its first request.
func (b *bench) starting(ctx context.Context) error {
	times := 5
	if b.opts.Budget < time.Minute {
		times = 1
	}
	var took []float64
	c := b.lab.browser()
	for range times {
		begin := time.Now()
		p, err := spawn(ctx, b.opts.Program, b.lab.sink.env(), "run")
		if err != nil {
			return err
		}
		for err = errNotYet; err != nil && ctx.Err() == nil && time.Since(begin) < startTimeout; {
			if err = fetch(ctx, c, "http://"+p.HTTP+"/v1/sessions?pageSize=1"); err != nil {
				time.Sleep(time.Millisecond)
			}
		}
		took = append(took, float64(time.Since(begin))/float64(time.Millisecond))
		c.CloseIdleConnections()
		if err := errors.Join(err, p.stop()); err != nil {
			return err
		}
	}
	b.report.found(probeStartup, "ms", median(took))
	return nil
}
