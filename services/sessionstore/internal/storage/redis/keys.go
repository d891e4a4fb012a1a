package redis

import "strconv"

// Keys are spelled here and nowhere else. All keys of a shard carry its hash
// tag, so that one script can change all of them, on one node and on a cluster
// alike. Scripts get the shard's prefix and add the same suffixes (scripts/
// lib.lua): which keys they touch depends on what they find, and the hash tag
// keeps every one of them on the slot of the key that routes the script.
//
//	<p>session:<id>    hash    one session
//	<p>events:<id>     stream  its log
//	<p>ids:<id>        hash    event id -> cursor, for what is in the log
//	<p>request:<...>   string  project NUL user NUL requestId -> session id
//	<p>gone:<id>       string  deleted, for as long as one that ended is kept
//	<p>deadlines       zset    live session -> deadline
//	<p>warnings        zset    live session -> when to append session:expiring
//	<p>retired         zset    over session -> when to purge it
//	<p>by-user         zset    score 0, user NUL project NUL id
//	<p>by-project      zset    score 0, project NUL user NUL id
//	<p>feed            stream  every event and lifecycle change of the shard
//	<p>groups          hash    consumer group -> cursor it has acknowledged
//	<p>replayed        hash    from: when the oldest event was accepted that came
//	                           into the feed later, to: the last such entry
//	<p>holds           hash    holder -> from when on it holds the sweep
//	<p>lease:<group>   string  who reads the shard for the group
//
// where <p> is "stoker:{s<shard>}:".
const (
	metaKey     = "stoker:{s0}:meta"
	policiesKey = "stoker:{s0}:policies"
	projectsKey = "stoker:{s0}:projects"
)

func prefix(shard int) string { return "stoker:{s" + strconv.Itoa(shard) + "}:" }

func (sh *shard) session(id string) string { return sh.p + "session:" + id }
func (sh *shard) events(id string) string  { return sh.p + "events:" + id }
func (sh *shard) feed() string             { return sh.p + "feed" }
func (sh *shard) groups() string           { return sh.p + "groups" }
func (sh *shard) deadlines() string        { return sh.p + "deadlines" }
func (sh *shard) retired() string          { return sh.p + "retired" }
func (sh *shard) byUser() string           { return sh.p + "by-user" }
func (sh *shard) byProject() string        { return sh.p + "by-project" }
func (sh *shard) lease(group string) string {
	return sh.p + "lease:" + group
}

func consumersKey(group string) string { return prefix(0) + "consumers:" + group }
