package sessionstore

import (
	"errors"

	"github.com/livinguniverse/stoker/pkg/telemetry"
	"github.com/livinguniverse/stoker/services/sessionstore/internal/server"
)

// errNoJournal refuses the journal.
var errNoJournal = errors.New("--write-fallback: got journal, which is the default where --data-dir is given with Redis, want fail_fast: the outage journal is not in this version")

// checkJournal returns what is wrong with the flags that are about writes in an
// outage.
func (c *Config) checkJournal() []error {
	var errs []error
	switch c.WriteFallback {
	case "", FallbackFailFast, FallbackJournal:
	default:
		errs = append(errs, wrong("write-fallback", c.WriteFallback, "fail_fast or journal"))
	}
	if c.JournalBytes < 1<<20 {
		errs = append(errs, wrong("journal-max-bytes", c.JournalBytes, "at least 1048576"))
	}
	switch {
	case !c.Journals():
	case c.Backend() != StorageRedis:
		errs = append(errs, wrong("write-fallback", c.WriteFallback, "fail_fast: the embedded store has no outages"))
	case c.DataDir == "":
		errs = append(errs, wrong("data-dir", `""`, "a directory: --write-fallback journal keeps the writes there"))
	default:
		errs = append(errs, errNoJournal)
	}
	return errs
}

// journal puts the outage journal over the near-cache, b.near, which knows the
// last state of a session that a write changes. It has to set b.Store and
// b.standsIn.
func (b *backend) journal(Config, *telemetry.Telemetry, *server.Marks) error { return errNoJournal }
