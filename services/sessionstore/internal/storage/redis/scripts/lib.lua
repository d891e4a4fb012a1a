-- Shared by the scripts. Each script includes only the parts that it uses
-- (script.go), because defining a function costs time in every call. A part begins with a line "--@part"
-- that names what it defines, and uses only parts before it.
--
-- A script touches only the keys that it declares: its KEYS line binds them to
-- SESSION, EVENTS, FEED and so on (keys.go). An optional key that the caller did
-- not declare is nil. FIELDS comes from record.go.
--
-- A script does not touch a key again that it may have emptied: Redis deletes it
-- then, and on a node whose slot is moving the rest of the script would fail.

--@part AGAIN
-- Verdict of a script that needs a key which the caller did not declare: it has
-- changed nothing, and returns what names the key.
local AGAIN = -4

--@part UNCERTAIN
-- Verdict of a script that finds an index entry and no session on a cluster,
-- before the session's keys can have expired by themselves. After a failover in
-- the middle of a slot's migration, the new master does not know of the migration
-- (Redis 7), and what has moved is missing to it: nothing may be concluded.
local UNCERTAIN = -5

--@part now_ms
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

--@part int
-- Numbers are doubles; this never formats one in scientific notation.
local function int(n) return string.format('%.0f', n) end

--@part record
-- The session as the store reads it, for scripts that return it: read by itself,
-- it might have been changed or deleted by then.
local function record() return redis.call('HMGET', SESSION, unpack(FIELDS)) end

--@part acknowledged
-- A script that replays a write gets the time when it was accepted, and the
-- cursor that was acknowledged for its lifecycle event; '' is now.
local acknowledged = ''

--@part as_of
local function as_of(arg)
  if arg == '' then return end
  local ms, cursor = string.match(arg, '^(%d+) ?(.*)$')
  acknowledged = cursor
  return tonumber(ms)
end

--@part less
-- The order of stream ids.
local function less(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if tonumber(am) ~= tonumber(bm) then return tonumber(am) < tonumber(bm) end
  if #as ~= #bs then return #as < #bs end
  return as < bs
end

--@part last_id
-- The last id of the session's log.
local function last_id()
  local last = redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)[1]
  return last and last[1] or '0-0'
end

--@part follow
-- The wanted id where it is after the last one, and else the next.
local function follow(last, wanted)
  if less(last, wanted) then return wanted end
  local ms, seq = string.match(last, '^(%d+)-(%d+)$')
  return ms .. '-' .. int(tonumber(seq) + 1)
end

--@part chunked
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

--@part trim
-- Keeps the newest MAX_EVENTS of the log. An event that is dropped can no
-- longer be told apart from a new one with the same id, so its id goes too.
local function trim()
  local over = redis.call('XLEN', EVENTS) - MAX_EVENTS
  if over <= 0 then return end
  local last
  local names, places, gone = {}, {}, {}
  for _, entry in ipairs(redis.call('XRANGE', EVENTS, '-', '+', 'COUNT', over)) do
    last = entry[1]
    local f = entry[2]
    if f[1] == 'i' then
      names[#names + 1], places[#places + 1] = f[2], last
    end
  end
  for i, at in ipairs(chunked('HMGET', IDS, names, 1)) do
    if at == places[i] then gone[#gone + 1] = names[i] end
  end
  chunked('HDEL', IDS, gone, 1)
  redis.call('XTRIM', EVENTS, 'MAXLEN', '=', MAX_EVENTS)
  redis.call('HSET', SESSION, 'trim', last)
end

--@part lifecycle
-- Appends one of the store's own events to the log and to the feed, as raw
-- numbers: fields is a flat list of names and values. A replayed one has its
-- place in the log as of then; in the feed it comes last, as they all do.
local function lifecycle(id, kind, at, fields, replayed)
  local place = '*'
  if replayed then place = follow(last_id(), acknowledged ~= '' and acknowledged or int(at) .. '-0') end
  redis.call('XADD', EVENTS, place, 'L', kind, 'n', int(at), unpack(fields))
  redis.call('XADD', FEED, '*', 's', id, 'L', kind, 'n', int(at), unpack(fields))
  trim()
end

--@part keep_until
-- The safety net: the keys expire by themselves long after the sweeper should
-- have removed them. It goes before what may trim the log, and so empty IDS.
local function keep_until(at)
  for _, k in ipairs({SESSION, EVENTS, IDS}) do redis.call('PEXPIREAT', k, int(at)) end
end

--@part delist
-- Removes the session from every index that its caller declares.
local function delist(id)
  local m = redis.call('HMGET', SESSION, 'um', 'pm')
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', WARNINGS, id)
  redis.call('ZREM', RETIRED, id)
  if m[1] then redis.call('ZREM', BY_USER, m[1]) end
  if m[2] then redis.call('ZREM', BY_PROJECT, m[2]) end
end

--@part standing
-- What a script reads of the session that it may retire: state, deadline,
-- extensions, members of by-user and by-project, revision, time of its purge.
local function standing()
  return redis.call('HMGET', SESSION, 'st', 'exp', 'ext', 'um', 'pm', 'rev', 'purge')
end

--@part leave_live
-- Removes the session, with its standing v, from the live indexes.
local function leave_live(id, v)
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', WARNINGS, id)
  if v[4] then redis.call('ZREM', BY_USER, v[4]) end
  redis.call('ZREM', BY_PROJECT, v[5])
end

--@part retire
-- Moves the session, which is live by its standing v, from the live indexes to
-- retention and appends session:ended (state 1) or session:expired (state 2). It
-- ends at the time asof where that is given; retention begins now, however long
-- ago that was.
local function retire(id, v, state, reason, now, asof)
  local at = int(asof or now)
  local purge = int(now + RETENTION)
  leave_live(id, v)
  redis.call('HSET', SESSION, 'st', state, 'end', at, 'upd', at, 'why', reason, 'purge', purge, 'rev', int(tonumber(v[6]) + 1))
  redis.call('ZADD', RETIRED, purge, id)
  keep_until(now + RETENTION + 3600000)
  if state == '1' then
    lifecycle(id, 'session:ended', asof or now, {'x', v[2], 'r', reason}, asof)
  else
    lifecycle(id, 'session:expired', asof or now, {'x', v[2], 'c', v[3]}, asof)
  end
end

--@part undeclared_request
-- The key of the request that created the session, where it has one that its
-- caller did not declare.
local function undeclared_request()
  local request = redis.call('HGET', SESSION, 'req')
  if request and request ~= '' and not REQUEST then return request end
end

--@part remove
-- Removes every key and index entry of the session.
local function remove(id)
  delist(id)
  if REQUEST and redis.call('GET', REQUEST) == id then redis.call('DEL', REQUEST) end
  redis.call('DEL', SESSION, EVENTS, IDS)
end

--@part live
-- Whether the session could still change at a time: 0, or -1 (there is none), or
-- -2 (it is over).
local function live(at)
  local v = redis.call('HMGET', SESSION, 'st', 'exp')
  if not v[1] then return -1 end
  if v[1] ~= '0' or at >= tonumber(v[2]) then return -2 end
  return 0
end
