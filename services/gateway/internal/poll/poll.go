// Package poll keeps polling in bounds: who asks for events without waiting
// may ask once in an interval, and is told before the store is asked.
package poll

import (
	"net/http"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"google.golang.org/grpc/codes"

	"github.com/livinguniverse/stoker/pkg/rpc"
	"github.com/livinguniverse/stoker/services/gateway/internal/httperr"
)

// leastWait is the shortest wait that counts as waiting.
const leastWait = time.Second

// mostWait is the longest wait that the store takes.
const mostWait = 30 * time.Second

// remembered bounds how many clients and sessions are kept in mind; beyond it
// the one not seen for longest is forgotten.
const remembered = 100_000

// Limiter allows one request per client, session and interval.
type Limiter struct {
	interval time.Duration
	clock    func() time.Time

	mu   sync.Mutex
	next *lru.Cache[key, time.Time]
}

type key struct{ client, session string }

// New returns a limiter.
func New(interval time.Duration, clock func() time.Time) (*Limiter, error) {
	cache, err := lru.New[key, time.Time](remembered)
	if err != nil {
		return nil, err
	}
	return &Limiter{interval: interval, clock: clock, next: cache}, nil
}

// Take uses a client's turn on a session. It returns 0, or how long until the
// next turn. Of several at once, one gets it.
func (l *Limiter) Take(client, session string) time.Duration {
	k := key{client, session}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Under the lock: an earlier time than that of the turn before would be too
	// soon even where there is no interval.
	now := l.clock()
	if at, ok := l.next.Get(k); ok && at.After(now) {
		return at.Sub(now)
	}
	l.next.Add(k, now.Add(l.interval))
	return 0
}

// GiveBack makes the next turn free at once: there was more to read, or the
// request failed.
func (l *Limiter) GiveBack(client, session string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next.Remove(key{client, session})
}

// Len returns how many turns are remembered.
func (l *Limiter) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next.Len()
}

// Session returns the session whose events a request lists, "" for any other
// request.
func Session(r *http.Request) string {
	if r.Method != http.MethodGet {
		return ""
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v1/sessions/")
	if !ok {
		return ""
	}
	id, ok := strings.CutSuffix(rest, "/events")
	if !ok || strings.Contains(id, "/") {
		return ""
	}
	return id
}

// Waits says whether a request for events waits for them. A wait that the
// store would refuse, or that is given in parts (wait.seconds) and so can say
// two things at once, is none.
func Waits(r *http.Request) bool {
	if !strings.ContainsAny(r.URL.RawQuery, "w%") {
		return false // there is no wait in it, and most have none
	}
	query := r.URL.Query()
	for name := range query {
		if strings.HasPrefix(name, "wait.") {
			return false
		}
	}
	if len(query["wait"]) != 1 {
		return false
	}
	d, err := time.ParseDuration(query.Get("wait"))
	return err == nil && d >= leastWait && d <= mostWait
}

// Refuse answers a request that came too early.
func Refuse(w http.ResponseWriter, after time.Duration) {
	httperr.Write(w, rpc.Error(codes.ResourceExhausted, "POLL_TOO_SOON",
		"polled too soon: give wait (such as wait=20s) to be answered when there is something, or ask again after the given delay", nil, after))
}

// Waiters bounds how many requests of one client may wait at the same time.
type Waiters struct {
	most int
	mu   sync.Mutex
	now  map[string]int
}

// NewWaiters returns a bound.
func NewWaiters(most int) *Waiters { return &Waiters{most: most, now: map[string]int{}} }

// Enter counts a waiting request of a client until leave is called; it returns
// nil when there are too many.
func (b *Waiters) Enter(client string) (leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now[client] >= b.most {
		return nil
	}
	b.now[client]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.now[client]--; b.now[client] == 0 {
			delete(b.now, client)
		}
	}
}

// RefuseWaiter answers a request beyond the bound.
func RefuseWaiter(w http.ResponseWriter) {
	httperr.Write(w, rpc.Error(codes.ResourceExhausted, "TOO_MANY_WAITERS",
		"too many requests of this client wait already", nil, 5*time.Second))
}
