package redis

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// minVersion is the first version of Redis that knows the flags of allowFull. Valkey
// and others report the version of Redis that they are compatible with.
var minVersion = [2]int{7, 0}

// serverState is what a server reports about itself. A field that it does not report
// is empty, and nothing may be concluded from that.
type serverState struct {
	// info are the fields of INFO.
	info map[string]string
	// config are the settings that CONFIG GET returned; nil where it is refused, as
	// managed services do.
	config map[string]string
	// configErr is why config is nil.
	configErr error
}

// readServerState asks a server in one round trip. It asks for the configuration only
// where that is wanted. The round trip is not one of the lane's: what a server refuses
// to report says nothing about its health, and must not move a breaker.
func readServerState(ctx context.Context, node *goredis.Client, timeout time.Duration, config bool) (serverState, error) {
	ctx, cancel := context.WithTimeout(pastBreakers(ctx), timeout)
	defer cancel()
	info := goredis.NewStringCmd(ctx, "info")
	settings := goredis.NewMapStringStringCmd(ctx, "config", "get", "save", "appendfsync", "cluster-require-full-coverage")
	p := node.Pipeline()
	_ = p.Process(ctx, info)
	if config {
		_ = p.Process(ctx, settings)
	}
	_, _ = p.Exec(ctx) // each command has its own error
	if err := info.Err(); err != nil {
		return serverState{}, err
	}
	st := serverState{info: parseInfo(info.Val()), configErr: settings.Err()}
	if config && st.configErr == nil {
		st.config = settings.Val()
	}
	return st, nil
}

// parseInfo returns the fields of a reply to INFO.
func parseInfo(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			out[name] = value
		}
	}
	return out
}

// number returns a field of INFO, and whether the server reports it.
func (st serverState) number(field string) (int64, bool) {
	n, err := strconv.ParseInt(st.info[field], 10, 64)
	return n, err == nil
}

// tooOld returns the version of a server that is earlier than minVersion, "" for one
// that is not, or whose version is not known.
func (st serverState) tooOld() string {
	version := st.info["redis_version"]
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n < 2 {
		return ""
	}
	if major > minVersion[0] || major == minVersion[0] && minor >= minVersion[1] {
		return ""
	}
	return version
}

// Codes of the warnings about a server.
const (
	warnVersion     = "server-version"
	warnPolicy      = "eviction-policy"
	warnEvictions   = "evictions"
	warnPersistence = "persistence"
	warnCoverage    = "full-coverage"
)

// finding is the outcome of one check of a server: a warning, or none where message
// is empty.
type finding struct{ code, message string }

// findings returns the outcome of every check that could be made.
func (st serverState) findings(cluster bool) []finding {
	var out []finding
	add := func(code, message string) { out = append(out, finding{code, message}) }
	if version := st.info["redis_version"]; version != "" {
		add(warnVersion, st.checkVersion())
	}
	if policy := st.info["maxmemory_policy"]; policy != "" {
		add(warnPolicy, st.checkPolicy(policy))
	}
	if message, known := st.checkPersistence(); known {
		add(warnPersistence, message)
	}
	if coverage := st.config["cluster-require-full-coverage"]; cluster && coverage != "" {
		message := ""
		if coverage != "no" {
			message = "cluster-require-full-coverage is " + coverage + ": while slots of one master are not served, Redis refuses calls about all sessions; set cluster-require-full-coverage no"
		}
		add(warnCoverage, message)
	}
	return out
}

func (st serverState) checkVersion() string {
	old := st.tooOld()
	if old == "" {
		return ""
	}
	return fmt.Sprintf("the server is Redis %s: scripts fail on it; use Redis %d.%d or later", old, minVersion[0], minVersion[1])
}

func (st serverState) checkPolicy(policy string) string {
	if policy == "noeviction" {
		return ""
	}
	// Every key of a session has a TTL, so the volatile policies evict it, too.
	message := "maxmemory-policy is " + policy + ": when memory is full, Redis evicts live sessions and indexes; set maxmemory-policy noeviction"
	if most, known := st.number("maxmemory"); known && most == 0 {
		message += " (maxmemory is 0, so nothing is evicted now)"
	}
	return message
}

// checkPersistence returns a warning where a restart loses more than the last second
// or two, and whether that is known.
func (st serverState) checkPersistence() (message string, known bool) {
	switch st.info["aof_enabled"] {
	case "1":
		if st.config["appendfsync"] == "no" {
			return "appendfsync is no: a crash of the machine loses the writes of about 30 s; set appendfsync everysec or always", true
		}
		return "", true
	case "0":
	default:
		return "", false
	}
	save, known := st.config["save"]
	switch {
	case !known:
		// A managed service can persist in a way of its own.
		return "", false
	case strings.TrimSpace(save) == "":
		return "neither appendonly nor save is set: a restart of Redis loses all sessions; set appendonly yes", true
	}
	message = fmt.Sprintf("appendonly is no, and save is %q: a restart of Redis loses the writes since the last snapshot, and brings ended sessions back; set appendonly yes", save)
	if st.info["rdb_last_bgsave_status"] == "err" {
		message += " (the last snapshot failed)"
	}
	return message, true
}
