package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
)

// Report is what a run has found.
type Report struct {
	Version string        `json:"version"`
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"tookNanos"`
	Budget  time.Duration `json:"budgetNanos"`
	Rounds  int           `json:"rounds"`
	Machine machine       `json:"machine"`
	Targets []verdict     `json:"targets"`
	Probes  []probe       `json:"probes"`
	Samples []sample      `json:"samples"`
	Notes   []string      `json:"notes"`

	// order keeps comparisons and contenders as they were first met.
	order []comparison
}

// probe is a figure that is no comparison.
type probe struct {
	Name  string `json:"name"`
	Unit  string `json:"unit"`
	Value figure `json:"value"`
}

func newReport(o Options, began time.Time) *Report {
	return &Report{Version: o.Version, Began: began.UTC().Truncate(time.Second), Budget: o.Budget, Rounds: o.Rounds, Notes: []string{}, Probes: []probe{}}
}

func (r *Report) add(c comparison, s sample) {
	r.Samples = append(r.Samples, s)
	for _, known := range r.order {
		if known.Name == c.Name {
			return
		}
	}
	r.order = append(r.order, c)
}

func (r *Report) found(name, unit string, value float64) {
	r.Probes = append(r.Probes, probe{Name: name, Unit: unit, Value: figure(value)})
}

// probed is a figure by name; NaN when it was not taken.
func (r *Report) probed(name string) float64 {
	for _, p := range r.Probes {
		if p.Name == name {
			return float64(p.Value)
		}
	}
	return math.NaN()
}

// series are a contender's figures, round by round.
func (r *Report) series(comparison, contender string, callers int, of func(sample) float64) []float64 {
	var out []float64
	for _, s := range r.Samples {
		if s.Comparison == comparison && s.Contender == contender && s.Callers == callers {
			out = append(out, of(s))
		}
	}
	return out
}

func (r *Report) judge() {
	r.Targets = nil
	for _, t := range targets() {
		r.Targets = append(r.Targets, t.judge(r))
	}
}

// JSON is the report for programs, with every sample.
func (r *Report) JSON() ([]byte, error) {
	raw, err := json.MarshalIndent(r, "", "  ")
	return append(raw, '\n'), err
}

// Markdown is the report for people: targets, then each comparison.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Stoker %s, %s, %s of a budget of %s, medians of %d rounds.\n\n%s\n\n",
		r.Version, r.Began.Format("2006-01-02 15:04 MST"), r.Took.Round(time.Second), r.Budget, r.Rounds, r.Machine)
	rows := [][]string{{"target", "wanted", "found", ""}}
	for _, v := range r.Targets {
		rows = append(rows, []string{v.What, v.Want, spelled(float64(v.Figure), v.Unit), v.Mark})
	}
	writeTable(&b, rows)
	for _, c := range r.order {
		fmt.Fprintf(&b, "\n%s:\n\n", c.Name)
		writeTable(&b, r.rows(c))
	}
	if len(r.Probes) > 0 {
		b.WriteString("\nBeside that:\n\n")
		rows := [][]string{{"what", "found"}}
		for _, p := range r.Probes {
			rows = append(rows, []string{p.Name, spelled(float64(p.Value), p.Unit)})
		}
		writeTable(&b, rows)
	}
	for i, n := range r.Notes {
		if i == 0 {
			b.WriteString("\nNotes:\n\n")
		}
		fmt.Fprintf(&b, "- %s\n", n)
	}
	return b.String()
}

// columns of a comparison's table.
var columns = []struct {
	name string
	of   func(sample) float64
}{
	{"%ss/s", throughput},
	{"p50 µs", func(s sample) float64 { return float64(s.P50) }},
	{"p99 µs", func(s sample) float64 { return float64(s.P99) }},
	{"server CPU µs/%s", func(s sample) float64 { return float64(s.CPU) }},
	{"allocations/%s", allocations},
	{"Redis CPU µs/%s", func(s sample) float64 { return float64(s.RedisCPU) }},
	{"Redis commands/%s", func(s sample) float64 { return float64(s.RedisCommands) }},
}

func (r *Report) rows(c comparison) [][]string {
	head := []string{"callers", "by"}
	for _, col := range columns {
		head = append(head, strings.ReplaceAll(col.name, "%s", c.Item))
	}
	rows := [][]string{head}
	for _, callers := range c.Callers {
		for _, who := range c.Contenders {
			row := []string{fmt.Sprint(callers), who.Name}
			for _, col := range columns {
				row = append(row, number(median(known(r.series(c.Name, who.Name, callers, col.of)))))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// known leaves out what is unknown.
func known(v []float64) []float64 {
	var out []float64
	for _, f := range v {
		if !math.IsNaN(f) {
			out = append(out, f)
		}
	}
	return out
}

// number spells a figure with three digits that count, at least.
func number(f float64) string {
	switch abs := math.Abs(f); {
	case math.IsNaN(f):
		return "-"
	case abs >= 100:
		return grouped(int64(math.Round(f)))
	case abs >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}

// grouped separates thousands.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(s) - 3; i > start; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// writeTable writes a Markdown table whose columns line up; the first row is
// its head.
func writeTable(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(b, "| %-*s ", width[i], cell)
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for _, w := range width {
			b.WriteString("|" + strings.Repeat("-", w+2))
		}
		b.WriteString("|\n")
	}
}
