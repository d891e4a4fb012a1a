package redis

import (
	"strings"
	"sync"
)

// recentMost bounds the feed entries that are remembered one by one, and recentSessions
// the sessions of which only the last of the earlier entries is: the latest of each.
const (
	recentMost     = 16_384
	recentSessions = 100_000
)

// recent remembers which sessions the latest entries of all feeds were about: of a loss
// it says whose events are gone. The zero value is ready for use.
type recent struct {
	mu      sync.Mutex
	entries []recentEntry
	next    int
	// young and old are the last entries of sessions that have made room, by session.
	// When young is half of what there may be, it becomes old, and old is forgotten.
	young, old map[string]recentEntry
}

type recentEntry struct {
	shard int
	at    int64 // Unix milliseconds
	id    string
}

func (r *recent) add(shard int, at int64, id string) {
	e := recentEntry{shard, at, strings.Clone(id)} // it is a part of a large reply
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.entries) < recentMost {
		r.entries = append(r.entries, e)
		return
	}
	e, r.entries[r.next] = r.entries[r.next], e
	r.next = (r.next + 1) % recentMost
	if r.young == nil || len(r.young) >= recentSessions/2 {
		r.old, r.young = r.young, map[string]recentEntry{}
	}
	r.young[e.id] = e
}

// between returns the sessions with entries after from and up to to, on one shard or,
// where that is negative, on all.
func (r *recent) between(shard int, g gap) map[string]bool {
	out := map[string]bool{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		if (shard < 0 || e.shard == shard) && e.at > g.from && e.at <= g.to {
			out[e.id] = true
		}
	}
	for _, some := range []map[string]recentEntry{r.young, r.old} {
		for id, e := range some {
			// One after to hides earlier ones, which may be lost.
			if (shard < 0 || e.shard == shard) && e.at > g.from {
				out[id] = true
			}
		}
	}
	return out
}
