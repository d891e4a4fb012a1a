-- KEYS: session gone events deadlines warnings by-user by-project feed [request prior]
-- ARGV: id, prior ('' for none), as of, then the hash's fields and values as a
-- flat list, which begins with crt, exp, act, upd, cap, below, pm and, where it has a
-- user, um. request is declared where the session is created under a request key;
-- prior is the session that an earlier call found under that key; declare its record
-- too.
--
-- The session is created now, by the clock that judges its deadlines: its times are
-- moved by as much as its crt is off. A replayed creation keeps its times, and so does
-- the session where an attempt of the same creation has stored it before.
-- Returns {0, id, the session}, {1, id, the session} if the request key was used
-- before (no session if it has been deleted), or {AGAIN, id} if the request key
-- names a session that the caller did not declare.
local id, prior, asof = ARGV[1], ARGV[2], as_of(ARGV[3])
local request = REQUEST
if request then
  local old = redis.call('GET', request)
  if old then
    local holder = old == id and SESSION or old == prior and PRIOR
    if not holder then return {AGAIN, old} end
    if redis.call('EXISTS', holder) == 1 then
      if not asof then return {1, old, redis.call('HMGET', holder, unpack(FIELDS))} end
      request = nil -- it stays with the session that has it
    end
  end
end
-- Caps are bounded by the latest time there is (lifetime.NewTerms), and stay so.
local LATEST = 253402300799999
local function move_cap(cap, by)
  return int(cap >= LATEST and LATEST or math.min(cap + by, LATEST))
end
-- The same call again, whose answer was lost: ids are never made twice.
if redis.call('EXISTS', SESSION) == 1 then
  if asof then
    local v = redis.call('HMGET', SESSION, 'st', 'crt', 'exp', 'act', 'upd', 'cap', 'below')
    local by = tonumber(ARGV[5]) - tonumber(v[2])
    if v[1] == '0' and by ~= 0 then
      -- The attempt's reply was lost, and its caller was told other times meanwhile.
      local expire = tonumber(v[3]) + by
      local act, upd = v[4] == v[2] and ARGV[9] or v[4], v[5] == v[2] and ARGV[11] or v[5]
      redis.call('HSET', SESSION, 'crt', ARGV[5], 'exp', int(expire), 'act', act, 'upd', upd, 'cap', move_cap(tonumber(v[6]), by))
      redis.call('ZADD', DEADLINES, 'XX', int(expire), id)
      redis.call('ZADD', WARNINGS, 'XX', int(expire - tonumber(v[7])), id)
      keep_until(math.max(expire, now_ms()) + KEEP)
    end
  end
  return {0, id, record()}
end
-- It may have been deleted since it was accepted; or since an attempt before,
-- whose answer was lost or which has arrived only now.
if redis.call('EXISTS', GONE) == 1 then return {0, id, {}} end
local now = now_ms()
local by = asof and 0 or now - tonumber(ARGV[5])
if by ~= 0 then
  for i = 5, 11, 2 do ARGV[i] = int(tonumber(ARGV[i]) + by) end
  ARGV[13] = move_cap(tonumber(ARGV[13]), by)
end
redis.call('HSET', SESSION, unpack(ARGV, 4))
if REQUEST and not request then redis.call('HSET', SESSION, 'req', '') end
local expire = tonumber(ARGV[7])
redis.call('ZADD', DEADLINES, ARGV[7], id)
redis.call('ZADD', WARNINGS, int(expire - tonumber(ARGV[15])), id)
if ARGV[18] == 'um' then redis.call('ZADD', BY_USER, 0, ARGV[19]) end
redis.call('ZADD', BY_PROJECT, 0, ARGV[17])
lifecycle(id, 'session:created', asof or now, {'x', ARGV[7]}, asof)
-- A request is answered with its session for as long as that is there, so its
-- key outlasts every extension: no other script needs it to move a deadline.
if request then
  redis.call('SET', request, id)
  redis.call('PEXPIREAT', request, int(math.max(tonumber(ARGV[13]), now) + LINGER))
end
keep_until(math.max(expire, now) + KEEP) -- a replayed one may be past its deadline
return {0, id, record()}
