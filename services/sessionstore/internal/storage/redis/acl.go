package redis

import (
	"slices"
	"strings"
)

// keyPattern is the pattern of all keys of a deployment.
const keyPattern = "stoker:*"

// need says where a right is needed.
type need uint8

const (
	always need = iota
	inCluster
	inDatabase // other than 0
	// optional: without it the store works, and cannot check or name something.
	optional
)

// right is a command that the store runs, itself or in a script.
type right struct {
	// name is as ACL rules spell it.
	name string
	// args are those of a sample call; KEY stands for a key.
	args string
	need need
}

// rights are the commands of the store and of its client, and all that a user needs
// besides the keys. The conformance suite runs as a user with exactly these.
var rights = []right{
	{"eval", "return 0", always},
	{"evalsha", "sha 0", always},
	{"ping", "", always},
	{"role", "", always},
	{"time", "", always},
	{"dbsize", "", always},
	{"scan", "0", always},

	{"del", "KEY", always},
	{"exists", "KEY", always},
	{"get", "KEY", always},
	{"set", "KEY v", always},
	{"pexpire", "KEY 1", always},
	{"pexpireat", "KEY 1", always},
	{"pttl", "KEY", always},

	{"hdel", "KEY f", always},
	{"hget", "KEY f", always},
	{"hgetall", "KEY", always},
	{"hincrby", "KEY f 1", always},
	{"hmget", "KEY f", always},
	{"hset", "KEY f v", always},
	{"hsetnx", "KEY f v", always},

	{"xadd", "KEY * f v", always},
	{"xlen", "KEY", always},
	{"xrange", "KEY - +", always},
	{"xread", "STREAMS KEY 0", always},
	{"xrevrange", "KEY + -", always},
	{"xtrim", "KEY MINID 0", always},

	{"zadd", "KEY 0 m", always},
	{"zcard", "KEY", always},
	{"zcount", "KEY 0 0", always},
	{"zmscore", "KEY m", always},
	{"zrange", "KEY 0 0", always},
	{"zrangebylex", "KEY - +", always},
	{"zrangebyscore", "KEY 0 0", always},
	{"zrem", "KEY m", always},
	{"zremrangebyscore", "KEY 0 0", always},
	{"zscan", "KEY 0", always},
	{"zscore", "KEY m", always},

	{"select", "1", inDatabase},
	{"asking", "", inCluster},
	{"command", "", inCluster}, // of go-redis, for keyless commands
	{"cluster|keyslot", "k", inCluster},
	{"cluster|nodes", "", inCluster},
	{"cluster|slots", "", inCluster},

	{"config|get", "maxmemory-policy", optional},
	{"info", "", optional},
}

// reads are the commands with a key that change nothing.
var reads = []string{"exists", "get", "hget", "hgetall", "hmget", "pttl", "xlen", "xrange", "xread", "xrevrange", "zcard", "zcount", "zmscore", "zrange", "zrangebylex", "zrangebyscore", "zscan", "zscore"}

// call is one question to acl_check_cmd.
type call struct {
	// of is the right that the call is about, nil where it is about the key.
	of   *right
	key  string
	args []string
}

// checksOfRights are the calls that tell which rights a user has.
func (s *Store) checksOfRights() []call {
	sample := s.shards[0].session("check")
	var calls []call
	for i := range rights {
		r := &rights[i]
		if r.need == optional || r.need == inCluster && !s.conn.cluster || r.need == inDatabase && s.conn.access.target.db == 0 {
			continue
		}
		calls = append(calls, call{of: r, args: r.sampleCall(sample)})
	}
	// A pattern may leave out some keys. hincrby reads and writes.
	perKey := func(key string) {
		calls = append(calls, call{key: key, args: []string{"hincrby", key, "f", "1"}})
	}
	for k := range keyKinds {
		key, _ := s.shards[0].key(k, "check").(string)
		perKey(key)
	}
	for _, sh := range s.shards[1:] {
		perKey(sh.feed())
	}
	return calls
}

// sampleCall spells a call of the command.
func (r *right) sampleCall(key string) []string {
	args := append(strings.Split(r.name, "|"), strings.Fields(r.args)...)
	for i := range args {
		if args[i] == "KEY" {
			args[i] = key
		}
	}
	return args
}

func (r *right) hasKey() bool { return strings.Contains(r.args, "KEY") }
func (r *right) writes() bool { return r.hasKey() && !slices.Contains(reads, r.name) }
