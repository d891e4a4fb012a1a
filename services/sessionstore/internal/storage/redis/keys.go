package redis

import "strconv"

// Keys are spelled here and nowhere else. All keys of a shard carry its hash
// tag, so that one script can change all of them, on one node and on a cluster
// alike. A script declares each key that it may touch: while a slot moves, its
// keys are on two nodes, and only for declared keys does Redis answer TRYAGAIN,
// ASK or MOVED before anything has run. A script names its keys by kind in its
// first line (scripts/*.lua), and finds each in a variable of the kind's name.
//
//	<p>session:<id>    hash    one session
//	<p>events:<id>     stream  its log
//	<p>ids:<id>        hash    event id -> cursor, for what is in the log
//	<p>request:<...>   string  project NUL user NUL requestId -> session id
//	<p>gone:<id>       string  deleted, for as long as one that ended is kept
//	<p>deadlines       zset    live session -> deadline, or earlier
//	<p>warnings        zset    live session -> when to append session:expiring, or earlier
//	<p>retired         zset    over session -> when to purge it, or earlier
//	<p>by-user         zset    score 0, user NUL project NUL id
//	<p>by-project      zset    score 0, project NUL user NUL id
//	<p>feed            stream  every event and lifecycle change of the shard
//	<p>groups          hash    consumer group -> cursor it has acknowledged
//	<p>replayed        hash    from: when the oldest event was accepted that came
//	                           into the feed later, to: the last such entry
//	<p>holds           hash    holder -> from when on it holds the sweep
//	<p>lease:<group>   string  who reads the shard for the group
//	<p>marks           hash    at:<replica> -> its latest mark, a time that only
//	                           grows; removed: the highest that was removed; lost:
//	                           the times that were lost. On shard 0, and in a
//	                           cluster on every shard (past.go)
//
// where <p> is "stoker:{s<shard>}:". Shard 0 also has
//
//	<p>meta            hash    shards, format and epoch of the deployment
//	<p>policies        hash    project -> its policy
//	<p>projects        zset    score 0, projects with a policy
//	<p>consumers:<group>  zset  consumer of a feed -> its last heartbeat
type keyKind uint8

const (
	keySession keyKind = iota
	keyEvents
	keyIDs
	keyRequest
	keyGone
	keyLease
	keyPrior // the session that a request key names
	keyConsumers
	ownedKinds // from here on the shard has one key of the kind
)

const (
	keyDeadlines keyKind = ownedKinds + iota
	keyWarnings
	keyRetired
	keyByUser
	keyByProject
	keyFeed
	keyGroups
	keyReplayed
	keyHolds
	keyMarks
	keyMeta
	keyPolicies
	keyProjects
	keyKinds
)

// kinds are the names of the kinds in the scripts, and what follows the shard's
// prefix in their keys.
var kinds = [keyKinds]struct{ name, suffix string }{
	keySession: {"session", "session:"}, keyEvents: {"events", "events:"}, keyIDs: {"ids", "ids:"},
	keyRequest: {"request", "request:"}, keyGone: {"gone", "gone:"}, keyLease: {"lease", "lease:"},
	keyPrior: {"prior", "session:"}, keyConsumers: {"consumers", "consumers:"},
	keyDeadlines: {"deadlines", "deadlines"}, keyWarnings: {"warnings", "warnings"}, keyRetired: {"retired", "retired"},
	keyByUser: {"by-user", "by-user"}, keyByProject: {"by-project", "by-project"},
	keyFeed: {"feed", "feed"}, keyGroups: {"groups", "groups"}, keyReplayed: {"replayed", "replayed"}, keyHolds: {"holds", "holds"},
	keyMarks: {"marks", "marks"},
	keyMeta:  {"meta", "meta"}, keyPolicies: {"policies", "policies"}, keyProjects: {"projects", "projects"},
}

const (
	policiesKey = "stoker:{s0}:policies"
	projectsKey = "stoker:{s0}:projects"
	// sessionKeys matches the records of sessions, of every shard.
	sessionKeys = "stoker:{s*}:session:*"
)

func prefix(shard int) string { return "stoker:{s" + strconv.Itoa(shard) + "}:" }

type shard struct {
	n int
	p string
	// owned are the keys that the shard has one of, as arguments of commands: a
	// string takes memory each time it becomes one.
	owned [keyKinds]any
}

func newShard(n int) *shard {
	sh := &shard{n: n, p: prefix(n)}
	for k := ownedKinds; k < keyKinds; k++ {
		sh.owned[k] = sh.p + kinds[k].suffix
	}
	return sh
}

// key is a key of the shard, as an argument of a command; name is that of the
// session, request or group, where the kind has one.
func (sh *shard) key(k keyKind, name string) any {
	if k >= ownedKinds {
		return sh.owned[k]
	}
	return sh.p + kinds[k].suffix + name
}

func (sh *shard) own(k keyKind) string      { return sh.p + kinds[k].suffix }
func (sh *shard) session(id string) string  { return sh.p + kinds[keySession].suffix + id }
func (sh *shard) events(id string) string   { return sh.p + kinds[keyEvents].suffix + id }
func (sh *shard) feed() string              { return sh.own(keyFeed) }
func (sh *shard) groups() string            { return sh.own(keyGroups) }
func (sh *shard) holds() string             { return sh.own(keyHolds) }
func (sh *shard) deadlines() string         { return sh.own(keyDeadlines) }
func (sh *shard) retired() string           { return sh.own(keyRetired) }
func (sh *shard) byUser() string            { return sh.own(keyByUser) }
func (sh *shard) byProject() string         { return sh.own(keyByProject) }
func (sh *shard) lease(group string) string { return sh.p + kinds[keyLease].suffix + group }
