package bench

import (
	"math"
	"slices"
	"time"
)

// median of figures; NaN of none. Of an even number it is the mean of the two
// in the middle.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// percentile p, 0 to 1, of sorted times, by the nearest rank; 0 of none.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// overRounds combines the figures of two contenders round by round, and takes
// the median: what disturbs a round disturbs both of its sides.
func overRounds(a, b []float64, combine func(a, b float64) float64) float64 {
	out := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if r := combine(a[i], b[i]); !math.IsNaN(r) && !math.IsInf(r, 0) {
			out = append(out, r)
		}
	}
	return median(out)
}

func ratio(a, b float64) float64 { return a / b }

func difference(a, b float64) float64 { return a - b }
