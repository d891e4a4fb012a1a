-- KEYS: session gone events deadlines warnings by-user by-project feed [request prior]
-- ARGV: id, prior ('' for none), as of, then the hash's fields and values as a
-- flat list. request is declared where the session is
-- created under a request key; prior is the session that an earlier call found
-- under that key; declare its record too.
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
-- The same call again, whose answer was lost: ids are never made twice.
if redis.call('EXISTS', SESSION) == 1 then return {0, id, record()} end
-- It may have been deleted since it was accepted; or since an attempt before,
-- whose answer was lost or which has arrived only now.
if redis.call('EXISTS', GONE) == 1 then return {0, id, {}} end
redis.call('HSET', SESSION, unpack(ARGV, 4))
if REQUEST and not request then redis.call('HSET', SESSION, 'req', '') end
local v = redis.call('HMGET', SESSION, 'exp', 'below', 'um', 'pm', 'cap')
local expire = tonumber(v[1])
redis.call('ZADD', DEADLINES, v[1], id)
redis.call('ZADD', WARNINGS, int(expire - tonumber(v[2])), id)
if v[3] then redis.call('ZADD', BY_USER, 0, v[3]) end
redis.call('ZADD', BY_PROJECT, 0, v[4])
local now = now_ms()
lifecycle(id, 'session:created', asof or now, {'x', v[1]}, asof)
-- A request is answered with its session for as long as that is there, so its
-- key outlasts every extension: no other script needs it to move a deadline.
if request then
  redis.call('SET', request, id)
  redis.call('PEXPIREAT', request, int(math.max(tonumber(v[5]), now) + LINGER))
end
keep_until(math.max(expire, now) + KEEP) -- a replayed one may be past its deadline
return {0, id, record()}
