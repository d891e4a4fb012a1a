package redis

// runsWhenFull are the scripts that Redis runs also when its memory is full. A script
// is one of these if it frees memory, or if something that frees memory waits for it;
// and what it adds must be bounded for each session, group or replica that is there.
var runsWhenFull = map[string]bool{
	"sweep": true, // trims the feed, and finds the rest
	"warn":  true, // precedes expire in a sweep
	// These two add a few fields and events, which go when the retention is over.
	"expire": true, "end": true,
	"purge": true, "delete": true, "forget": true,
	// The feed is trimmed, and sessions expire, only as far as it is acknowledged. For
	// that, a consumer must join, keep its leases and have its reports of activity taken.
	"ack": true, "join": true, "lease": true, "beat": true, "extend": true,
	"hold": true, // its release lets sweeps go on
	"meta": true, // a store begins with it
	"mark": true, // a sweep begins with it
	"gap":  true, // what ended is ended again until every session that lost events is marked
}

// allowFull is the first line of these scripts. Since Redis 7.0 it makes the server
// accept them when memory is full. Like that, a replica or a server that cannot
// persist refuses them before they run, and not at their first write.
const allowFull = "#!lua flags=allow-oom\n"

// laneOf returns the lane on which a script runs.
func (s *Store) laneOf(sc *script) *lane {
	if sc.whenFull {
		return s.conn.free
	}
	return s.conn.write
}
