-- Shared by every script. KEYS[1] routes; ARGV[1] is the shard's prefix.
local P = ARGV[1]

local function key(kind, id) return P .. kind .. ':' .. id end

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Numbers are doubles; this never spells one in scientific notation.
local function int(n) return string.format('%.0f', n) end

-- A session as the store reads it, for scripts that answer with it: read by
-- itself, it might have been changed or deleted by then. FIELDS comes from
-- record.go.
local function record(id) return redis.call('HMGET', key('session', id), unpack(FIELDS)) end

-- A script that replays a write gets the time when it was accepted, and the
-- cursor that the caller was told for its lifecycle event; '' is now.
local told = ''
local function as_of(arg)
  if arg == '' then return end
  local ms, cursor = string.match(arg, '^(%d+) ?(.*)$')
  told = cursor
  return tonumber(ms)
end

-- The order of stream ids.
local function less(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if tonumber(am) ~= tonumber(bm) then return tonumber(am) < tonumber(bm) end
  if #as ~= #bs then return #as < #bs end
  return as < bs
end

-- The last id of a log.
local function last_of(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  return last and last[1] or '0-0'
end

-- The wanted id where it is after the last one, and else the next.
local function follow(last, wanted)
  if less(last, wanted) then return wanted end
  local ms, seq = string.match(last, '^(%d+)-(%d+)$')
  return ms .. '-' .. int(tonumber(seq) + 1)
end

-- Calls a command with any number of arguments of n that belong together, as
-- many at a time as Lua can unpack, and returns what it answered.
local function chunked(command, k, args, n)
  local out, most = {}, 2000 * n
  for from = 1, #args, most do
    local got = redis.call(command, k, unpack(args, from, math.min(#args, from + most - 1)))
    if type(got) == 'table' then
      for i = 1, #got do out[#out + 1] = got[i] end
    end
  end
  return out
end

-- Keeps the newest `most` events of a log. What is dropped can no longer be
-- told apart from a new event with the same id, so its id goes too.
local function trim(id, most)
  local log, ids = key('events', id), key('ids', id)
  local over = redis.call('XLEN', log) - most
  if over <= 0 then return end
  local last
  local names, places, gone = {}, {}, {}
  for _, entry in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', over)) do
    last = entry[1]
    local f = entry[2]
    if f[1] == 'i' then
      names[#names + 1], places[#places + 1] = f[2], last
    end
  end
  for i, at in ipairs(chunked('HMGET', ids, names, 1)) do
    if at == places[i] then gone[#gone + 1] = names[i] end
  end
  chunked('HDEL', ids, gone, 1)
  redis.call('XTRIM', log, 'MAXLEN', '=', int(most))
  redis.call('HSET', key('session', id), 'trim', last)
end

-- Appends one of the store's own events to the log and to the feed, as raw
-- numbers: fields is a flat list of names and values. One that is replayed has
-- its place in the log as of then; in the feed it comes last, as they all do.
local function lifecycle(id, kind, at, most, fields, replayed)
  local log, place = key('events', id), '*'
  if replayed then place = follow(last_of(log), told ~= '' and told or int(at) .. '-0') end
  redis.call('XADD', log, place, 'L', kind, 'n', int(at), unpack(fields))
  redis.call('XADD', P .. 'feed', '*', 's', id, 'L', kind, 'n', int(at), unpack(fields))
  trim(id, most)
end

-- The safety net: keys vanish by themselves long after the sweeper should have
-- removed them.
local function keep_until(id, at)
  for _, kind in ipairs({'session', 'events', 'ids'}) do
    redis.call('PEXPIREAT', key(kind, id), int(at))
  end
  -- A request is answered with its session for as long as that is there.
  local request = redis.call('HGET', key('session', id), 'req')
  if request and request ~= '' and redis.call('GET', P .. 'request:' .. request) == id then
    redis.call('PEXPIREAT', P .. 'request:' .. request, int(at))
  end
end

local function delist(id)
  local m = redis.call('HMGET', key('session', id), 'um', 'pm')
  redis.call('ZREM', P .. 'deadlines', id)
  redis.call('ZREM', P .. 'warnings', id)
  redis.call('ZREM', P .. 'retired', id)
  if m[1] then redis.call('ZREM', P .. 'by-user', m[1]) end
  if m[2] then redis.call('ZREM', P .. 'by-project', m[2]) end
end

-- Takes a session out of the live indexes, puts it under retention and appends
-- session:ended (state 1) or session:expired (state 2). It ends at the time
-- asof where that is given; retention begins now, however long ago that was.
local function retire(id, state, reason, now, retention, most, asof)
  local at = asof or now
  local s = key('session', id)
  local v = redis.call('HMGET', s, 'exp', 'ext')
  delist(id)
  redis.call('HSET', s, 'st', state, 'end', int(at), 'upd', int(at), 'why', reason, 'purge', int(now + retention))
  redis.call('HINCRBY', s, 'rev', 1)
  redis.call('ZADD', P .. 'retired', int(now + retention), id)
  if state == '1' then
    lifecycle(id, 'session:ended', at, most, {'x', v[1], 'r', reason}, asof)
  else
    lifecycle(id, 'session:expired', at, most, {'x', v[1], 'c', v[2]}, asof)
  end
  keep_until(id, now + retention + 3600000)
end

-- Removes every key and index entry of a session.
local function remove(id)
  local request = redis.call('HGET', key('session', id), 'req')
  delist(id)
  if request and request ~= '' and redis.call('GET', P .. 'request:' .. request) == id then
    redis.call('DEL', P .. 'request:' .. request)
  end
  redis.call('DEL', key('session', id), key('events', id), key('ids', id))
end

-- A session that could still change at a time: 0, or -1 (none), or -2 (over).
local function live(id, at)
  local v = redis.call('HMGET', key('session', id), 'st', 'exp')
  if not v[1] then return -1 end
  if v[1] ~= '0' or at >= tonumber(v[2]) then return -2 end
  return 0
end
