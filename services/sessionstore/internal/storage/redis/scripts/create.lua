-- ARGV: prefix, id, request ('' for none), most events, keep (ms after the
-- deadline), as of, then the hash's fields and values as a flat list.
-- Returns {0, id, the session}, or {1, id, the session} with that for which the
-- request key was used before. There is no session where it was deleted since.
local id, request, most, keep, asof = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), as_of(ARGV[6])
if request ~= '' then
  local old = redis.call('GET', P .. 'request:' .. request)
  if old and redis.call('EXISTS', key('session', old)) == 1 then
    if not asof then return {1, old, record(old)} end
    request = '' -- it stays with the session that has it
  end
end
local s = key('session', id)
-- The same call again, whose answer was lost: ids are never made twice.
if redis.call('EXISTS', s) == 1 then return {0, id, record(id)} end
-- It may have been deleted since it was accepted; or since a try before, whose
-- answer was lost or which has come only now.
if redis.call('EXISTS', key('gone', id)) == 1 then return {0, id, {}} end
redis.call('HSET', s, unpack(ARGV, 7))
if asof and request ~= ARGV[3] then redis.call('HSET', s, 'req', request) end
local v = redis.call('HMGET', s, 'exp', 'below', 'um', 'pm')
local expire = tonumber(v[1])
redis.call('ZADD', P .. 'deadlines', v[1], id)
redis.call('ZADD', P .. 'warnings', int(expire - tonumber(v[2])), id)
if v[3] then redis.call('ZADD', P .. 'by-user', 0, v[3]) end
redis.call('ZADD', P .. 'by-project', 0, v[4])
local now = now_ms()
lifecycle(id, 'session:created', asof or now, most, {'x', v[1]}, asof)
if request ~= '' then redis.call('SET', P .. 'request:' .. request, id) end
keep_until(id, math.max(expire, now) + keep) -- a replayed one may be past its deadline
return {0, id, record(id)}
