package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// reserve is kept of the budget for taking everything down.
const reserve = time.Second

const (
	// leastPhase is the shortest phase there is; phases under goodPhase say
	// little, which the report tells.
	leastPhase = 20 * time.Millisecond
	goodPhase  = 500 * time.Millisecond
)

// bench is one run: what it finds goes into the report.
type bench struct {
	opts     Options
	lab      *lab
	report   *Report
	progress io.Writer
	end      time.Time
}

// Run measures everything that the budget allows. It ends its children before
// it returns, also when ctx ends.
func Run(ctx context.Context, o Options, progress io.Writer) (_ *Report, err error) {
	begin := time.Now()
	l, err := newLab(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	b := &bench{opts: o, lab: l, progress: progress, end: begin.Add(o.Budget - reserve), report: newReport(o, begin)}
	if err := b.all(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err() // what failed, failed for that
		}
		return nil, errors.Join(err, l.healthy())
	}
	b.report.Took = time.Since(begin)
	b.report.judge()
	return b.report, nil
}

func (b *bench) all(ctx context.Context) error {
	b.say("starting Redis, Stoker and the baselines")
	r, err := b.lab.redis(ctx)
	if err != nil {
		return err
	}
	if b.report.Machine, err = describe(ctx, r); err != nil {
		return err
	}
	f, err := b.fixture(ctx, r, "--redis-url", r.url(0))
	if err != nil {
		return err
	}
	base, err := b.lab.newBaselines(ctx, f)
	if err != nil {
		return err
	}
	comparisons, err := b.lab.onRedis(f, base)
	if err != nil {
		return err
	}
	more, err := b.more(ctx, f, base, &comparisons[0])
	if err != nil {
		return err
	}
	return b.compare(ctx, append(comparisons, more...))
}

// more prepares what stands beside the store on Redis, and measures what is no
// comparison. reads gets further contenders.
func (b *bench) more(ctx context.Context, f *fixture, base *baselines, reads *comparison) ([]comparison, error) {
	if err := b.cached(ctx, f, reads); err != nil {
		return nil, err
	}
	single, err := b.embedded(ctx, f, base, reads)
	if err != nil {
		return nil, err
	}
	polls, err := b.polling(ctx)
	if err != nil {
		return nil, err
	}
	// On a Redis of their own: sweepers would show in the figures of the first.
	other, err := b.lab.redis(ctx)
	if err != nil {
		return nil, err
	}
	logs, err := b.byLog(ctx, other)
	if err != nil {
		return nil, err
	}
	b.say("starting stoker run a few times")
	if err := b.starting(ctx); err != nil {
		return nil, err
	}
	if err := b.watching(ctx, other); err != nil {
		return nil, err
	}
	sizes, err := b.bySessions(ctx)
	return append(append([]comparison{single, polls}, logs...), sizes...), err
}

// compare shares out what is left of the budget, and measures in rounds: each
// goes through all contenders, beginning with another one each time. What one
// phase takes too long the later ones have less.
func (b *bench) compare(ctx context.Context, all []comparison) error {
	left := 0.0
	for _, c := range all {
		left += c.phases() * float64(b.opts.Rounds)
	}
	if slot := time.Duration(float64(time.Until(b.end)) / left); slot < goodPhase {
		b.note("The budget is short: phases of %v each say little.", max(leastPhase, slot).Round(time.Millisecond))
	}
	for round := range b.opts.Rounds {
		for _, c := range all {
			for _, callers := range c.Callers {
				for i := range c.Contenders {
					share := c.share(callers)
					d := time.Duration(share / left * float64(time.Until(b.end)))
					left -= share
					if err := b.phase(ctx, c, c.Contenders[(i+round)%len(c.Contenders)], callers, round, max(leastPhase, d)); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

func (b *bench) phase(ctx context.Context, c comparison, who contender, callers, round int, d time.Duration) error {
	s, err := measure(ctx, who, callers, d)
	if err != nil {
		return fmt.Errorf("%s by %s: %w", c.Name, who.Name, err)
	}
	s.Comparison, s.Round = c.Name, round
	b.report.add(c, s)
	b.say("round %d of %d: %s, %d callers, %s: %s %ss/s", round+1, b.opts.Rounds, c.Name, callers, who.Name, number(float64(s.PerSecond)), c.Item)
	if s.Errors > 0 {
		b.note("%s, %d callers, %s: %d of %d calls failed, the first with: %s", c.Name, callers, who.Name, s.Errors, s.Calls, s.FirstError)
	}
	return nil
}

// say shows progress, with the time that is left.
func (b *bench) say(format string, args ...any) {
	left := max(0, time.Until(b.end)).Round(time.Second)
	_, _ = fmt.Fprintf(b.progress, "[%4s left] %s\n", left, fmt.Sprintf(format, args...))
}

// note puts a remark into the report.
func (b *bench) note(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	b.report.Notes = append(b.report.Notes, text)
	b.say("note: %s", text)
}
