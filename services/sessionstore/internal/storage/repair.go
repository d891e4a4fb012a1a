package storage

// RepairQuery says how much of a store a repair looks at.
type RepairQuery struct {
	// Budget bounds how many keys of each server are looked at; 0 for all of them.
	// A call with a budget goes on where the one before ended.
	Budget int
	// Report is called with what was done so far, now and then and by one
	// goroutine; may be nil. It must not block.
	Report func(RepairResult)
}

// RepairResult counts what a repair did.
type RepairResult struct {
	// Keys were looked at, of Total: both are estimates, and 0 where the backend
	// does not count keys.
	Keys, Total int64
	// Sessions were compared with the indexes, some more than once where keys
	// moved; Restored are those of which entries were put back or corrected.
	Sessions, Restored int64
	// Dropped are entries that no session was behind.
	Dropped int64
	// Skipped are sessions that could not be looked at yet.
	Skipped int64
	// Done: every session was looked at.
	Done bool
}
