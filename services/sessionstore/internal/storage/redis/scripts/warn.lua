-- KEYS: session warnings events ids feed
-- ARGV: id, the time in ms before which warnings are due.
-- Appends session:expiring if the session's own record says that it is due, once
-- for each deadline: if several replicas find it due, only the one that removes
-- the index entry appends the event. Returns {1} if it did, {0} if it is not due,
-- {UNCERTAIN} if there is no session although its keys have not expired.
local id = ARGV[1]
local v, now = redis.call('HMGET', SESSION, 'st', 'exp', 'below', 'warned'), now_ms()
if not v[1] then
  local score = redis.call('ZSCORE', WARNINGS, id)
  if CLUSTER and score and tonumber(score) + KEEP > now then return {UNCERTAIN} end
end
if v[1] ~= '0' or v[4] == v[2] then
  redis.call('ZREM', WARNINGS, id)
  return {0}
end
local exp = tonumber(v[2])
local at = exp - tonumber(v[3])
if at >= tonumber(ARGV[2]) then -- the score was too early
  redis.call('ZADD', WARNINGS, 'XX', int(at), id)
  return {0}
end
if redis.call('ZREM', WARNINGS, id) == 0 or exp <= now then return {0} end
redis.call('HSET', SESSION, 'warned', v[2])
lifecycle(id, 'session:expiring', now, {'x', v[2]})
return {1}
