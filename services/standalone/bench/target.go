package bench

import (
	"math"
	"strings"
)

// target is what a figure should reach.
type target struct {
	What string
	// Want spells the target.
	Want string
	// Bound is the least the figure may be, or the most.
	Bound float64
	Most  bool
	Unit  string
	// Of is the figure; NaN when it was not measured.
	Of func(r *Report) float64
}

// verdict is a target and what was found.
type verdict struct {
	What   string `json:"what"`
	Want   string `json:"want"`
	Unit   string `json:"unit"`
	Figure figure `json:"figure"`
	// Mark is met, missed or not measured.
	Mark string `json:"mark"`
}

// Marks.
const (
	met         = "met"
	missed      = "missed"
	notMeasured = "not measured"
)

func (t target) judge(r *Report) verdict {
	v := verdict{What: t.What, Want: t.Want, Unit: t.Unit, Figure: figure(t.Of(r)), Mark: missed}
	switch f := float64(v.Figure); {
	case math.IsNaN(f):
		v.Mark = notMeasured
	case t.Most && f <= t.Bound, !t.Most && f >= t.Bound:
		v.Mark = met
	}
	return v
}

func throughput(s sample) float64  { return float64(s.PerSecond) }
func allocations(s sample) float64 { return float64(s.Allocs) }

// versus compares the throughput of two contenders at the usual callers.
func versus(comparison, a, b string) func(*Report) float64 {
	return func(r *Report) float64 {
		return overRounds(r.series(comparison, a, usual, throughput), r.series(comparison, b, usual, throughput), ratio)
	}
}

// atLeast and atMost are targets of a ratio or a figure.
func atLeast(what string, bound float64, unit string, of func(*Report) float64) target {
	return target{What: what, Want: "at least " + spelled(bound, unit), Bound: bound, Unit: unit, Of: of}
}

func atMost(what string, bound float64, unit string, of func(*Report) float64) target {
	return target{What: what, Want: "at most " + spelled(bound, unit), Bound: bound, Most: true, Unit: unit, Of: of}
}

// spelled is a figure with its unit, where it is known.
func spelled(f float64, unit string) string {
	if math.IsNaN(f) {
		return number(f)
	}
	return strings.TrimSpace(number(f) + " " + unit)
}

func probeOf(name string) func(*Report) float64 {
	return func(r *Report) float64 { return r.probed(name) }
}

// targets are what the figures should be on any machine; ratios are of
// throughput at the usual callers.
func targets() []target {
	return []target{
		atLeast("GetSession on Redis, of the plain service", 1.5, "x", versus(ofGet, byStoker, byPlain)),
		atLeast("GetSession on Redis, of the echo", 0.60, "x", versus(ofGet, byStoker, byEcho)),
		atLeast("GetSession from the near-cache (--read-cache, where the store has it), of the echo", 0.85, "x", versus(ofGet, byCached, byEcho)),
		atLeast("ExtendTTL on Redis, of a plain service with EVALSHA", 1.3, "x", versus(ofExtend, byStoker, byPlain)),
		atLeast("BatchExtendTTL, 200 a call, per item, of the auto-pipelined script alone", 0.8, "x", versus(ofBatch, byStoker, byPipelined)),
		atLeast("AppendEvents, 50 a call, per event, of auto-pipelined XADDs to two streams", 0.6, "x", versus(ofAppend, byStoker, byPipelined)),
		atLeast("embedded store: GetSession, of the echo", 0.85, "x", versus(ofGet, byEmbedded, byEcho)),
		atLeast("embedded store: AppendEvents, 1 a call, of the echo", 0.6, "x", versus(ofAppendOne, byEmbedded, byEcho)),
		atLeast("embedded store: durable appends (fsync) at 512 callers", 20_000, "events/s", func(r *Report) float64 {
			return median(known(r.series(ofAppendOne, byDurable, 512, throughput)))
		}),
		atLeast("ListEvents poll with nothing new, of a bare handler of the gateway's mux", 0.5, "x", versus(ofPoll, byEmbedded, byBare)),
		atMost("allocations of a GetSession in the server, over those of the echo", 25, "", func(r *Report) float64 {
			return overRounds(r.series(ofGet, byStoker, usual, allocations), r.series(ofGet, byEcho, usual, allocations), difference)
		}),
		atMost("processor time of a call with 1,000,000 sessions, of that with 1,000", 1.2, "x", grown),
		atMost("10,000 idle watchers: memory of each", 30<<10, "B", allWatchers(probeWatchBytes)),
		atMost("10,000 idle watchers: goroutines left when they have gone", leftAllowed, "", allWatchers(probeWatchLeft)),
		atMost("10,000 idle watchers: feed reads, of those without a watcher", 1.2, "x", allWatchers(probeFeedReads)),
		atMost("startup of stoker run to the first answer", 300, "ms", probeOf(probeStartup)),
	}
}

// allWatchers is a figure of a run with as many watchers as the target is about.
func allWatchers(name string) func(*Report) float64 {
	return func(r *Report) float64 {
		if r.probed(probeWatchers) < watchersMost {
			return math.NaN()
		}
		return r.probed(name)
	}
}
