package journal

// recentMost is how many sessions that have left are remembered.
const recentMost = 4096

// departure is a session that has left, and its owner.
type departure struct{ id, owner string }

// left returns how many sessions have left so far.
func (w *waiting) left() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.departures
}

// departed are sessions that have left, with their owners. All says that others, which
// are too many to know, have left as well.
type departed struct {
	all    bool
	owners map[string]string
}

func (d departed) has(id string) bool {
	_, ok := d.owners[id]
	return ok || d.all
}

// leftSince returns the sessions that have left since left returned before.
func (w *waiting) leftSince(before int64) departed {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := departed{all: w.departures-before > recentMost, owners: map[string]string{}}
	for n := max(before, w.departures-recentMost); n < w.departures; n++ {
		d := w.recent[n%recentMost]
		out.owners[d.id] = d.owner
	}
	return out
}
