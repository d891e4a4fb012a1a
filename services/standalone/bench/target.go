package bench

import "math"

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

// targets are what the ratios should be on any machine.
func targets() []target {
	return []target{
		{What: "GetSession on Redis, of the plain service", Want: "at least 1.5 x", Bound: 1.5, Unit: "x", Of: versus(ofGet, byStoker, byPlain)},
		{What: "GetSession on Redis, of the echo", Want: "at least 0.60 x", Bound: 0.60, Unit: "x", Of: versus(ofGet, byStoker, byEcho)},
		{What: "ExtendTTL on Redis, of a plain service with EVALSHA", Want: "at least 1.3 x", Bound: 1.3, Unit: "x", Of: versus(ofExtend, byStoker, byPlain)},
		{What: "BatchExtendTTL, 200 a call, per item, of the auto-pipelined script alone", Want: "at least 0.8 x", Bound: 0.8, Unit: "x", Of: versus(ofBatch, byStoker, byPipelined)},
		{What: "AppendEvents, 50 a call, per event, of auto-pipelined XADDs to two streams", Want: "at least 0.6 x", Bound: 0.6, Unit: "x", Of: versus(ofAppend, byStoker, byPipelined)},
		{What: "allocations of a GetSession in the server, over those of the echo", Want: "at most 25", Bound: 25, Most: true, Unit: "", Of: func(r *Report) float64 {
			return overRounds(r.series(ofGet, byStoker, usual, allocations), r.series(ofGet, byEcho, usual, allocations), difference)
		}},
	}
}
