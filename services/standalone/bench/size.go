package bench

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
)

// Comparisons of the same store at different sizes.
const (
	ofGetBySessions    = "GetSession by number of sessions"
	ofExtendBySessions = "ExtendTTL by number of sessions"
	ofAppendByLog      = "AppendEvents, 1 a call, by events in the log"
	ofListByLog        = "ListEvents with nothing new, by events in the log"
)

// sessionBytes is what a session takes in Redis, and some more.
const sessionBytes = 9000

func sessions(n int) string { return grouped(int64(n)) + " sessions" }

// bySessions compares stores with few and with many sessions, each on a Redis
// of its own.
func (b *bench) bySessions(ctx context.Context) ([]comparison, error) {
	get := comparison{Name: ofGetBySessions, Item: "call", Callers: []int{usual}}
	extend := comparison{Name: ofExtendBySessions, Item: "call", Callers: []int{usual}}
	var making time.Duration // of one, by the thousands
	for _, n := range []int{1000, 100_000, 1_000_000} {
		least := time.Minute
		if n > 100_000 {
			least = 3 * time.Minute
		}
		if b.opts.Budget < least {
			b.note("%s: not measured, that needs a budget of %v.", sessions(n), least)
			continue
		}
		if need, have := n*sessionBytes/1024, availableKiB(); have > 0 && have < need {
			b.note("%s: not measured, that needs %s MiB of memory and %s are available.", sessions(n), grouped(int64(need/1024)), grouped(int64(have/1024)))
			continue
		}
		if need, left := time.Duration(n)*making, time.Until(b.end); need > left*2/3 {
			b.note("%s: not measured, making them would take about %v of the %v that are left.", sessions(n), need.Round(time.Second), left.Round(time.Second))
			continue
		}
		begin := time.Now()
		f, err := b.populate(ctx, n)
		if err != nil {
			return nil, err
		}
		if n > pool { // the others are made one by one
			making = time.Since(begin) / time.Duration(n)
		}
		get.Contenders = append(get.Contenders, contender{Name: sessions(n), Server: f.store.process, Redis: f.redis, Do: getSession(f.store, f)})
		extend.Contenders = append(extend.Contenders, contender{Name: sessions(n), Server: f.store.process, Redis: f.redis, Do: extendTTL(f.store, f)})
	}
	if len(get.Contenders) == 0 {
		return nil, nil
	}
	return []comparison{get, extend}, nil
}

// populate starts a store with n sessions. It makes the first through the
// store, and the others by the very scripts that those were made with, under
// other ids of the same shards.
func (b *bench) populate(ctx context.Context, n int) (*fixture, error) {
	b.say("making %s", sessions(n))
	r, err := b.lab.redis(ctx)
	if err != nil {
		return nil, err
	}
	s, err := b.lab.serve(ctx, "store", "--redis-url", r.url(0))
	if err != nil {
		return nil, err
	}
	var f *fixture
	sent, err := monitor(ctx, r.Redis, func() (err error) {
		f, err = newFixture(ctx, s, r, min(n, pool))
		return err
	})
	if err != nil {
		return nil, err
	}
	made := scriptsOf(sent, f.ids)
	if len(made) != len(f.ids) {
		return nil, fmt.Errorf("learned how %d sessions were made, want %d", len(made), len(f.ids))
	}
	first := f.ids
	f.ids = append(make([]string, 0, n), first...)
	for i := len(first); i < n; i++ {
		f.ids = append(f.ids, sibling(first[i%len(first)], i))
	}
	const batch = 250
	rest := f.ids[len(first):]
	return f, each((len(rest)+batch-1)/batch, func(k int) error {
		p := r.admin.Pipeline()
		for i := k * batch; i < min(len(rest), (k+1)*batch); i++ {
			old := first[(len(first)+i)%len(first)]
			p.Do(ctx, renamed(made[old], old, rest[i])...)
		}
		_, err := p.Exec(ctx)
		return err
	})
}

// sibling is another id on the shard of one: the shard is in the first
// characters, and the last has bits that must stay.
func sibling(id string, n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	raw := []byte(id)
	for i := 5; i < 12; i++ {
		raw[i] = alphabet[n%len(alphabet)]
		n /= len(alphabet)
	}
	return string(raw)
}

// renamed is a call about another session.
func renamed(call []any, from, to string) []any {
	out := make([]any, len(call))
	for i, a := range call {
		out[i] = a
		if text, ok := a.(string); ok && strings.Contains(text, from) {
			out[i] = strings.ReplaceAll(text, from, to)
		}
	}
	return out
}

// grown is what a figure is at the largest size that was measured, over that at
// the smallest; the worse of two comparisons.
func grown(r *Report) float64 {
	worst := math.NaN()
	for _, c := range []string{ofGetBySessions, ofExtendBySessions} {
		g := overRounds(r.series(c, sessions(1_000_000), usual, sample.cost), r.series(c, sessions(1000), usual, sample.cost), ratio)
		if !math.IsNaN(g) && !(worst >= g) { // also while the worst is unknown
			worst = g
		}
	}
	return worst
}

// byLog compares logs that keep few and many events, all of them full, so that
// every append also trims.
func (b *bench) byLog(ctx context.Context, r *redis) ([]comparison, error) {
	add := comparison{Name: ofAppendByLog, Item: "event", Callers: []int{usual}}
	list := comparison{Name: ofListByLog, Item: "call", Callers: []int{usual}}
	for db, most := range []int{10, 1000, 10_000} {
		if most > 1000 && b.opts.Budget < time.Minute {
			continue
		}
		s, err := b.lab.serve(ctx, "store", "--redis-url", r.url(db+1), "--max-events", fmt.Sprint(most))
		if err != nil {
			return nil, err
		}
		const logs = 20
		f, err := newFixture(ctx, s, r, logs)
		if err != nil {
			return nil, err
		}
		if err := each(logs*max(1, most/appendBatch), func(i int) error {
			_, err := s.client(i).AppendEvents(ctx, appendRequest(f.ids[i%logs], appendBatch))
			return err
		}); err != nil {
			return nil, err
		}
		name := grouped(int64(most)) + " events"
		add.Contenders = append(add.Contenders, contender{Name: name, Server: s.process, Redis: r, Do: appendEvents(s, f, 1)})
		list.Contenders = append(list.Contenders, contender{Name: name, Server: s.process, Redis: r, Do: listNothing(s, f)})
	}
	return []comparison{add, list}, nil
}

// listNothing asks for what comes after a time that is still to come.
func listNothing(s *service, f *fixture) op {
	after := proto.String(fmt.Sprintf("%d-0", time.Now().Add(24*time.Hour).UnixMilli()))
	return func(ctx context.Context, worker, n int) error {
		_, err := s.client(worker).ListEvents(ctx, &sessionv1.ListEventsRequest{Id: f.pick(worker, n), After: after})
		return err
	}
}
