-- KEYS: session warnings events ids feed
-- ARGV: id, the time in ms before which warnings are due.
-- Appends session:expiring where the session's own record says that it is due,
-- once for each deadline: several replicas may have found it due, and the one that
-- removes it from the index warns. Returns {1} where it did, else {0}.
local v = redis.call('HMGET', SESSION, 'st', 'exp', 'below')
if v[1] ~= '0' then
  redis.call('ZREM', WARNINGS, ARGV[1])
  return {0}
end
local now, exp = now_ms(), tonumber(v[2])
local at = exp - tonumber(v[3])
if at >= tonumber(ARGV[2]) then -- the score was too early
  redis.call('ZADD', WARNINGS, 'XX', int(at), ARGV[1])
  return {0}
end
if redis.call('ZREM', WARNINGS, ARGV[1]) == 0 or exp <= now then return {0} end
redis.call('HSET', SESSION, 'warned', v[2])
lifecycle(ARGV[1], 'session:expiring', now, {'x', v[2]})
return {1}
