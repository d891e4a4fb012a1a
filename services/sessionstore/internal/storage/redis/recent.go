package redis

import (
	"strings"
	"sync"
)

// recentMost bounds the feed entries that are remembered.
const recentMost = 16_384

// recent remembers which sessions the latest entries of all feeds were about: of a loss
// it says whose events are gone. The zero value is ready for use.
type recent struct {
	mu      sync.Mutex
	entries []recentEntry
	next    int
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
	r.entries[r.next] = e
	r.next = (r.next + 1) % recentMost
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
	return out
}
