package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	sessionv1 "github.com/livinguniverse/stoker/proto/gen/stoker/session/v1"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/lifetime"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/storage"
)

const (
	// catalogEvery is how often the policies of all projects are read, catalogRetry
	// how soon again where that failed.
	catalogEvery, catalogRetry = 30 * time.Second, 5 * time.Second
	// catalogPage is how many are read at a time.
	catalogPage = 1000
)

// catalog are the policies of all projects, as they were last read together, with
// the changes that were seen since. It is kept in a file, so that a process that is
// started while the store cannot answer knows them.
type catalog struct {
	path string
	most int
	log  *slog.Logger
	// changed asks for the file to be written.
	changed chan struct{}
	stop    context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	policies map[string]*sessionv1.ProjectPolicy
	// whole: a project that is not among the policies has none.
	whole bool
	// seen is when they were read, in Unix milliseconds, 0 for never.
	seen int64
	// doubted are projects of which a change may or may not have been made.
	doubted map[string]bool
	// recent are projects that were changed while they are being read.
	recent map[string]bool
}

// KeepPolicies keeps the policies of all projects in a file, and reads what an
// earlier process has left there. It must be called once at most, before the store
// is used. A file that cannot be read is logged and replaced.
func (s *Store) KeepPolicies(path string, log *slog.Logger) {
	ctx, stop := context.WithCancel(context.Background())
	c := &catalog{
		path: path, most: s.opts.MaxPolicies, log: log, changed: make(chan struct{}, 1), stop: stop,
		policies: map[string]*sessionv1.ProjectPolicy{}, doubted: map[string]bool{}, recent: map[string]bool{},
	}
	switch known, err := readPolicies(path); {
	case err == nil:
		c.policies, c.whole, c.seen = known.policies, known.whole, known.seen
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("the policies of before cannot be read", slog.Any("error", err))
	}
	s.catalog = c
	c.running.Go(func() { c.run(ctx, s) })
}

// Close stops what reads the policies, and closes the store underneath.
func (s *Store) Close() error {
	if s.catalog != nil {
		s.catalog.stop()
		s.catalog.running.Wait()
	}
	return s.Store.Close()
}

// run reads the policies now and then, and writes the file, until ctx ends.
func (c *catalog) run(ctx context.Context, s *Store) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.changed:
		case <-next.C:
			if err := c.refresh(ctx, s); err != nil {
				c.log.DebugContext(ctx, "the policies cannot be read", slog.Any("error", err))
				next.Reset(catalogRetry)
				continue
			}
			next.Reset(catalogEvery)
		}
		if err := writePolicies(c.path, c.snapshot()); err != nil {
			c.log.WarnContext(ctx, "the policies cannot be kept for an outage", slog.Any("error", err))
		}
	}
}

// refresh reads the policies of all projects, or as many as are kept.
func (c *catalog) refresh(ctx context.Context, s *Store) error {
	c.mu.Lock()
	c.recent = map[string]bool{}
	c.mu.Unlock()
	read, seen, token := map[string]*sessionv1.ProjectPolicy{}, s.now(), ""
	for len(read) < c.most {
		page, err := s.ListPolicies(ctx, min(catalogPage, c.most-len(read)), token)
		if err != nil {
			return err
		}
		for _, p := range page.Policies {
			read[p.GetProject()] = p
		}
		if token = page.Next; token == "" {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for project := range c.recent { // what was read may be older
		delete(read, project)
		if p := c.policies[project]; p != nil {
			read[project] = p
		}
	}
	for project := range c.doubted {
		if !c.recent[project] {
			delete(c.doubted, project)
		}
	}
	c.policies, c.whole, c.seen = read, token == "", seen
	return nil
}

// learn takes what the store said of a project; nil for no policy. It is written
// down where it is news.
func (c *catalog) learn(project string, p *sessionv1.ProjectPolicy) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.policies[project]
	if (old == nil) == (p == nil) && lifetime.Millis(old.GetUpdateTime()) == lifetime.Millis(p.GetUpdateTime()) && !c.doubted[project] {
		return
	}
	if p != nil && old == nil && len(c.policies) >= c.most {
		c.whole = false
		return
	}
	delete(c.doubted, project)
	c.recent[project] = true
	if p == nil {
		delete(c.policies, project)
	} else {
		c.policies[project] = p
	}
	c.save()
}

// doubt forgets a project of which a change may or may not have been made.
func (c *catalog) doubt(project string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.doubted) >= c.most { // too many to know which
		c.doubted, c.seen = map[string]bool{}, 0
	}
	c.doubted[project], c.recent[project] = true, true
	delete(c.policies, project)
	c.save()
}

func (c *catalog) save() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// get returns what is known of a project, as of when; false where nothing is.
func (c *catalog) get(project string) (policy, bool) {
	if c == nil {
		return policy{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.policies[project]
	if c.seen == 0 || c.doubted[project] || p == nil && !c.whole {
		return policy{}, false
	}
	return policy{policy: p, seen: c.seen}, true
}

// snapshot returns what is to be written. With a project in doubt, nothing is known
// of projects that have no policy.
func (c *catalog) snapshot() keptPolicies {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := keptPolicies{policies: make(map[string]*sessionv1.ProjectPolicy, len(c.policies)), whole: c.whole && len(c.doubted) == 0, seen: c.seen}
	for project, p := range c.policies {
		out.policies[project] = p
	}
	return out
}

// knownPolicy returns what is known of a project's policy, the latest of what was
// asked for by itself and what was read with all others.
func (s *Store) knownPolicy(project string) (policy, bool) {
	known, ok := s.policies.get(project)
	if other, found := s.catalog.get(project); found && (!ok || other.seen > known.seen) {
		return other, true
	}
	return known, ok
}

// unknownPolicy says that a project's policy is not known, and why it cannot be
// asked for.
func unknownPolicy(err error) error { return fmt.Errorf("%w: %w", storage.ErrPolicyUnknown, err) }
