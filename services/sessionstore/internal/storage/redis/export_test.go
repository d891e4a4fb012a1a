package redis

import (
	"context"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// ClockKey holds the time of the scripts of a store opened with SetClockByKey,
// in Unix ms. It is on no slot of a session: a single server only.
const ClockKey = "test-clock"

// clockHead makes a script take the time from ClockKey: what TIME answers, and
// the ids that XADD makes up.
const clockHead = `
local server = redis
local redis = {pcall = server.pcall, call = function(...)
  local a = {...}
  if a[1] == 'TIME' then
    local ms = tonumber(server.call('GET', '` + ClockKey + `'))
    return {string.format('%.0f', math.floor(ms / 1000)), string.format('%.0f', ms % 1000 * 1000)}
  end
  if a[1] == 'XADD' and a[3] == '*' then
    local ms = tonumber(server.call('GET', '` + ClockKey + `'))
    if server.call('EXISTS', a[2]) == 1 then
      local info = server.call('XINFO', 'STREAM', a[2])
      for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then ms = math.max(ms, tonumber(string.match(info[i + 1], '^%d+'))) end
      end
    end
    a[3] = string.format('%.0f', ms) .. '-*'
  end
  return server.call(unpack(a))
end}
`

// SetClockByKey makes the scripts of a store tell the time by ClockKey.
func (o *Options) SetClockByKey() { o.scriptHead, o.ownClock = clockHead, true }

// OffsetKey holds by how much the clock of the scripts of a store opened with
// SetClockOffsetByKey is ahead, in ms; a single server only.
const OffsetKey = "test-clock-offset"

// SetClockOffsetByKey makes the scripts of a store tell the time as a server whose
// clock is off would. ShiftTime does the same for TIME.
func (o *Options) SetClockOffsetByKey() {
	o.scriptHead = `
local server = redis
local redis = {call = function(...)
  if ... ~= 'TIME' then return server.call(...) end
  local t = server.call('TIME')
  return {string.format('%.0f', t[1] + tonumber(server.call('GET', '` + OffsetKey + `') or '0') / 1000), t[2]}
end}
`
}

// ShiftTime changes what the servers of a store reply to TIME, by their addresses. It
// is called for each attempt.
func ShiftTime(s *Store, by func(addr string) time.Duration) error {
	servers, err := s.conn.read.servers(context.Background())
	for _, node := range servers {
		node.AddHook(shiftHook(func() time.Duration { return by(node.Options().Addr) }))
	}
	return err
}

type shiftHook func() time.Duration

func (shiftHook) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (shiftHook) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return next
}

func (by shiftHook) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		at, ok := cmd.(*goredis.TimeCmd)
		if !ok {
			return next(ctx, cmd)
		}
		off := by()
		err := next(ctx, cmd)
		if err == nil {
			at.SetVal(at.Val().Add(off))
		}
		return err
	}
}

// ClockServer is the address of the server by which a store sets its clock.
func ClockServer(s *Store) (string, error) {
	node, err := s.clockServer(context.Background())
	if err != nil {
		return "", err
	}
	return node.Options().Addr, nil
}

// MeasureNoClock makes a store go by Options.Clock alone.
func (o *Options) MeasureNoClock() { o.ownClock = true }

// Bounds of what the batches of a lane may have under way: commands of a round
// trip, and round trips.
const (
	BatchMost = batchMost
	SlotsMost = slotsMost
)

// WatchWrites has a hook see every round trip of scripts.
func (s *Store) WatchWrites(h goredis.Hook) {
	s.conn.write.client.AddHook(h)
	s.conn.free.client.AddHook(h)
}

// WatchReads has a hook see every round trip of the read lane.
func (s *Store) WatchReads(h goredis.Hook) { s.conn.read.client.AddHook(h) }

// ScriptNames are the names of the store's scripts by their SHA-1, and by
// MonitoredText of their text.
func (s *Store) ScriptNames() map[string]string {
	out := map[string]string{}
	for _, sc := range s.scripts.byName() {
		sha, _ := (*sc).sha.(string)
		out[sha] = (*sc).name
		out[MonitoredText((*sc).body)] = (*sc).name
	}
	out[nameScript(checkRightsScript)], out[MonitoredText(checkRightsScript)] = "rights", "rights"
	return out
}

// MonitoredText is a script's text without the characters that servers spell
// differently in MONITOR: Valkey 8.1 escapes line feeds there, and neither quotes nor
// backslashes.
func MonitoredText(body string) string {
	return strings.NewReplacer("\n", "", `\`, "", `"`, "", "n", "").Replace(body)
}

// DeclaredKinds are the kinds of keys that each script declares, as its keys have
// them after the shard's prefix.
func (s *Store) DeclaredKinds() map[string][]string {
	out := map[string][]string{}
	for _, sc := range s.scripts.byName() {
		for _, k := range (*sc).keys {
			out[(*sc).name] = append(out[(*sc).name], strings.TrimSuffix(kinds[k].suffix, ":"))
		}
	}
	return out
}

// Looks is how often the store has looked for open slots.
func Looks(s *Store) int64 { return s.looks.begun.Load() }

// Endings is how many sessions the store remembers to have ended.
func Endings(s *Store) int64 { return s.endings.n.Load() }

// MarksMost bounds the marks on a shard.
const MarksMost = marksMost

// Seen is the time of the last entry of a shard's feed that the store has seen.
func (s *Store) Seen(shard int) int64 { return s.tail.seen[shard].Load() }

// MarkGap marks a session as one that has lost events.
func (s *Store) MarkGap(ctx context.Context, id string, from int64) error {
	_, err := s.run(ctx, s.scripts.gap.on(s.shardOf(id), id, from))
	return err
}

// ReapplyMargin is how much older than a loss an ending may be to be applied again.
const ReapplyMargin = reapplyMargin * time.Millisecond

// ReappliedSince is since when endings wait to be applied again after losses.
func ReappliedSince(froms ...int64) int64 {
	s := &Store{again: reapply{signal: make(chan struct{}, 1)}}
	for _, from := range froms {
		s.reapplyEndings(from)
	}
	return s.again.from.Load()
}
