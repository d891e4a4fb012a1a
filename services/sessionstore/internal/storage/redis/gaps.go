package redis

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

// gap is a stretch of time whose data was lost, in Unix milliseconds of Redis: what
// is from before from is still there, and nothing was known from after to.
type gap struct{ from, to int64 }

// gapsMost bounds the gaps that are remembered; the oldest are forgotten.
const gapsMost = 16

// parseGaps reads gaps as mark.lua keeps them, "from-to from-to ...". It leaves out
// what is malformed.
func parseGaps(text string) []gap {
	var out []gap
	for pair := range strings.FieldsSeq(text) {
		from, to, _ := strings.Cut(pair, "-")
		f, err1 := strconv.ParseInt(from, 10, 64)
		t, err2 := strconv.ParseInt(to, 10, 64)
		if err1 == nil && err2 == nil && f <= t {
			out = append(out, gap{f, t})
		}
	}
	return out
}

func formatGaps(gaps []gap) string {
	out := make([]string, len(gaps))
	for i, g := range gaps {
		out[i] = strconv.FormatInt(g.from, 10) + "-" + strconv.FormatInt(g.to, 10)
	}
	return strings.Join(out, " ")
}

// mergeGaps returns the union of two lists, in order and without overlaps.
func mergeGaps(a, b []gap) []gap {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y gap) int { return cmp.Or(cmp.Compare(x.from, y.from), cmp.Compare(x.to, y.to)) })
	var out []gap
	for _, g := range all {
		if last := len(out) - 1; last >= 0 && g.from <= out[last].to {
			out[last].to = max(out[last].to, g.to)
		} else {
			out = append(out, g)
		}
	}
	return out[max(0, len(out)-gapsMost):]
}

// findGap returns the gap that a cursor lies in.
func findGap(gaps []gap, at storage.Cursor) (gap, bool) {
	for _, g := range gaps {
		if g.from <= at.Millis && at.Millis <= g.to {
			return g, true
		}
	}
	return gap{}, false
}

// before is the last cursor that is surely from before the gap.
func (g gap) before() storage.Cursor {
	if g.from <= 0 {
		return storage.Cursor{}
	}
	return storage.Cursor{Millis: g.from - 1, Seq: math.MaxUint64}
}

// crossesGap returns whether a session has lost events between two cursors, by the
// field of its record that says after which times.
func crossesGap(field any, after storage.Cursor, next string) bool {
	text, _ := field.(string)
	if text == "" {
		return false
	}
	end, err := storage.ParseCursor("next", next)
	for from := range strings.FieldsSeq(text) {
		ms, failed := strconv.ParseInt(from, 10, 64)
		if err == nil && failed == nil && after.Millis <= ms && end.Millis > ms {
			return true
		}
	}
	return false
}
