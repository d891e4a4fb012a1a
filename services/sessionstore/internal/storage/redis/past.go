package redis

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// The data of a Redis can go back in time: an older snapshot is restored, or a replica
// that lags is promoted. Nothing in the data says so, since all of it is from then. So
// each replica of the store writes a mark of its own into the data with every look at
// it, a time that only grows, and remembers what was acknowledged. Nobody else writes
// that mark. Where a later look finds an earlier one, or none, the data has gone back:
// everything after the mark that was found may be lost.
//
// A single server has one mark, a cluster one on each shard, as each of its masters may
// go back alone.

const (
	// marksMost bounds the marks on a shard.
	marksMost = 256
	// lookEvery is how often all shards of a cluster are looked at.
	lookEvery = time.Second
	// eventSpan is for how long the losses of several shards are one event.
	eventSpan = 3 * time.Second
	// reapplyMargin is how much older than a loss an ending may be, in milliseconds,
	// for it to be applied again: to apply one twice is harmless.
	reapplyMargin = 5000
)

// Places in the reply of mark.lua.
const (
	mkWritten = iota
	mkFound
	mkMark
	mkRemoved
	mkNewest
	mkLost
	mkShards // with the deployment's meta hash
	mkFormat
	mkEpoch
)

// past detects that data has gone back in time.
type past struct {
	s         *Store
	timelines []*timeline
	latest    atomic.Int64 // the latest mark that was acknowledged on any timeline

	mu        sync.Mutex // for all that follows: one look at a time
	replica   string
	file      markFile
	lookedAll time.Time
	lastEvent time.Time
}

// timeline is data that goes back in time as one: that of a single server, or of one
// shard of a cluster.
type timeline struct {
	sh *shard // has the mark
	// gaps are the stretches that were lost; replaced, never changed.
	gaps atomic.Pointer[[]gap]

	// suspected is what the follower of the feed found to be lost, and not looked at
	// since; nil for nothing.
	suspected atomic.Pointer[suspicion]

	acked  int64  // the mark that was acknowledged last, 0 for none
	stored string // the gaps as they were last seen in Redis
	own    int64  // how far the last loss reached that this process has reported
}

func newPast(s *Store) *past {
	p := &past{s: s, timelines: make([]*timeline, len(s.shards))}
	single := &timeline{sh: s.shards[0]}
	for i, sh := range s.shards {
		p.timelines[i] = single
		if s.conn.cluster {
			p.timelines[i] = &timeline{sh: sh}
		}
	}
	return p
}

// distinct returns each timeline once.
func (p *past) distinct() []*timeline {
	if p.s.conn.cluster {
		return p.timelines
	}
	return p.timelines[:1]
}

// lastMark returns a time up to which Redis has surely come.
func (p *past) lastMark() int64 { return p.latest.Load() }

// gapOf returns the gap of a shard that a cursor lies in.
func (p *past) gapOf(sh *shard, at storage.Cursor) (gap, bool) {
	gaps := p.timelines[sh.n].gaps.Load()
	if gaps == nil {
		return gap{}, false
	}
	return findGap(*gaps, at)
}

// suspicion is an entry of a feed that was seen and is gone, while an earlier one is
// there.
type suspicion struct {
	gap
	sh *shard
	id string
}

// suspect notes that entries of a shard's feed which were seen are gone: the last that
// is left, and the last that was seen.
func (p *past) suspect(n int, left, seen storage.Cursor) {
	tl := p.timelines[n]
	x := suspicion{gap{left.Millis, seen.Millis}, p.s.shards[n], seen.String()}
	if old := tl.suspected.Load(); old != nil {
		// On a single server, what is left on any shard is from before the loss.
		x.from = max(x.from, old.from)
		if old.to > x.to {
			x.to, x.sh, x.id = old.to, old.sh, old.id
		}
	}
	tl.suspected.Store(&x)
}

// confirmSuspicion looks again, at the server that takes writes: the follower may have
// read from one that is about to be replaced. It returns nil where nothing is lost.
func (p *past) confirmSuspicion(ctx context.Context, tl *timeline) (*suspicion, error) {
	x := tl.suspected.Load()
	if x == nil {
		return nil, nil //nolint:nilnil // nothing is suspected
	}
	cmd := goredis.NewXMessageSliceCmd(ctx, "xrevrange", x.sh.feed(), x.id, "-", "count", 1)
	if err := p.s.conn.write.do(ctx, cmd); err != nil {
		return nil, failure(err)
	}
	tl.suspected.CompareAndSwap(x, nil)
	if place := cmd.Val(); len(place) == 0 || place[0].ID == x.id {
		return nil, nil //nolint:nilnil // it is there, or was trimmed
	}
	return x, nil
}

// look compares the marks with those that were acknowledged, and writes new ones.
// Where some shards of a cluster cannot be looked at, it looks at the others.
func (p *past) look(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.s.Now()
	at := p.distinct()
	if since := now.Sub(p.lookedAll); p.s.conn.cluster && since >= 0 && since < lookEvery {
		at = slices.DeleteFunc(slices.Clone(at), func(tl *timeline) bool {
			return tl.sh.n != 0 && tl.suspected.Load() == nil
		})
	} else {
		p.lookedAll = now
	}
	lost, err := p.lookAt(ctx, at)
	if len(lost) > 0 {
		p.announce(ctx, lost)
		if _, again := p.lookAt(ctx, lostTimelines(lost)); again != nil { // tells the other replicas
			p.s.opts.Log.DebugContext(ctx, "loss not recorded yet", slog.Any("error", again))
		}
	}
	p.file.save(ctx, p, now, len(lost) > 0)
	return err
}

// loss is what a look found to be lost.
type loss struct {
	tl *timeline
	gap
	// span is how far back the data went, 0 where that is not known.
	span time.Duration
	all  bool // the data set is another one
}

func lostTimelines(lost []loss) []*timeline {
	out := make([]*timeline, len(lost))
	for i, l := range lost {
		out[i] = l.tl
	}
	return out
}

func (p *past) lookAt(ctx context.Context, at []*timeline) ([]loss, error) {
	calls := make([]invocation, len(at))
	for i, tl := range at {
		calls[i] = p.call(tl)
	}
	replies, errs := p.s.runAll(ctx, "mark", calls)
	var lost []loss
	for i, r := range replies {
		if errs[i] != nil {
			continue
		}
		l, err := p.judge(ctx, at[i], r)
		errs[i] = err
		if l != nil {
			lost = append(lost, *l)
		}
	}
	for _, err := range errs {
		if err != nil {
			return lost, err // mostly the same for each shard
		}
	}
	return lost, nil
}

func (p *past) call(tl *timeline) invocation {
	sc, acked, gaps := p.s.scripts.mark, "", ""
	if tl.acked > 0 {
		acked = strconv.FormatInt(tl.acked, 10)
	}
	if known := tl.gaps.Load(); known != nil {
		if text := formatGaps(mergeGaps(parseGaps(tl.stored), *known)); text != tl.stored {
			gaps = text
		}
	}
	call := sc.declare(tl.sh, "", sc.required, 6)
	if tl.sh.n == 0 {
		call = call.and(tl.sh.key(keyMeta, ""))
	}
	return call.with(p.replica, acked, gaps, tl.stored, tl.own)
}

// judge takes the reply to a look at a timeline. It returns what was lost, nil for
// nothing.
func (p *past) judge(ctx context.Context, tl *timeline, r reply) (*loss, error) {
	if text := r.text(mkLost); text != tl.stored {
		tl.stored = text
		p.learnGaps(tl, parseGaps(text))
	}
	if len(r) > mkEpoch {
		changed, err := p.s.noteMeta(ctx, r)
		if err != nil {
			return nil, err
		}
		if changed {
			l := loss{tl: tl, gap: gap{0, max(tl.acked, p.seen(tl))}, all: true}
			p.takeMark(tl, r)
			return &l, nil
		}
	}
	suspected, err := p.confirmSuspicion(ctx, tl)
	if err != nil {
		return nil, err
	}
	found, missing := r.num(mkFound), r.text(mkFound) == ""
	var l *loss
	switch {
	case tl.acked > 0 && missing && r.num(mkRemoved) < tl.acked:
		if err := p.s.confirm(ctx, tl.sh, storage.ErrNotFound); !errors.Is(err, storage.ErrNotFound) {
			return nil, err // its slot is half moved
		}
		l = &loss{tl: tl, gap: gap{r.num(mkNewest), tl.acked}}
	case tl.acked > 0 && !missing && found < tl.acked:
		l = &loss{tl: tl, gap: gap{found, tl.acked}}
	case suspected != nil:
		l = &loss{tl: tl, gap: suspected.gap}
	}
	if l != nil {
		l.to = max(l.to, p.seen(tl))
		if suspected != nil {
			l.gap = gap{max(l.from, suspected.from), max(l.to, suspected.to)}
		}
		l.from = min(l.from, l.to)
		if l.from > 0 {
			l.span = time.Duration(l.to-l.from) * time.Millisecond
		}
	}
	p.takeMark(tl, r)
	return l, nil
}

// takeMark takes what a look has written in place of the mark before. Where it has
// found none, or an earlier one, the next look writes: what was lost is known by then,
// also where the reply to a look before was lost.
func (p *past) takeMark(tl *timeline, r reply) {
	switch {
	case r.num(mkWritten) == 1:
		tl.acked = r.num(mkMark)
		p.latest.Store(max(p.latest.Load(), tl.acked))
	case r.text(mkFound) == "":
		tl.acked = 0
	default:
		tl.acked = r.num(mkFound) // or the write was refused
	}
}

// seen is the time of the latest entry of a timeline's feeds that was seen.
func (p *past) seen(tl *timeline) int64 {
	if p.s.conn.cluster {
		return p.s.tail.seen[tl.sh.n].Load()
	}
	latest := int64(0)
	for i := range p.s.tail.seen {
		latest = max(latest, p.s.tail.seen[i].Load())
	}
	return latest
}

func (p *past) learnGaps(tl *timeline, more []gap) {
	var known []gap
	if old := tl.gaps.Load(); old != nil {
		known = *old
	}
	merged := mergeGaps(known, more)
	if !slices.Equal(merged, known) {
		tl.gaps.Store(&merged)
		p.s.places.forget()
	}
}

// announce reports what was lost, as one event, and makes what rests on the lost data
// be looked at again. A loss that was reported before, and was found in another way
// now, is no new one.
func (p *past) announce(ctx context.Context, lost []loss) {
	var fresh []loss
	span, from := time.Duration(0), lost[0].from
	for _, l := range lost {
		p.learnGaps(l.tl, []gap{l.gap})
		from = min(from, l.from)
		if l.all || l.to > l.tl.own {
			fresh = append(fresh, l)
			span = max(span, l.span)
		}
		l.tl.own = max(l.tl.own, l.to)
		p.s.markGaps(l)
	}
	now := p.s.Now()
	if since := now.Sub(p.lastEvent); len(fresh) > 0 && (len(p.distinct()) == 1 || since < 0 || since > eventSpan) {
		p.lastEvent = now
		p.s.lost.Add(now, span)
		p.log(ctx, fresh, span)
	} else if len(fresh) > 0 {
		p.s.lost.Widen(span)
	}
	p.s.places.forget()
	p.s.tail.lost.Store(true)
	if p.s.opts.Lost != nil {
		p.s.opts.Lost()
	}
	p.s.reapplyEndings(from - reapplyMargin)
}

func (p *past) log(ctx context.Context, fresh []loss, span time.Duration) {
	if fresh[0].all {
		p.s.opts.Log.ErrorContext(ctx, "Redis has lost its data, or holds other data than before: sessions and events that were acknowledged are gone")
		return
	}
	shards := len(p.s.shards)
	if p.s.conn.cluster {
		shards = len(fresh)
	}
	p.s.opts.Log.ErrorContext(ctx, "data in Redis has gone back in time: what was acknowledged since then may be gone",
		slog.Duration("span", span), slog.Time("from", time.UnixMilli(fresh[0].from)), slog.Time("to", time.UnixMilli(fresh[0].to)),
		slog.Int("shards", shards))
}
