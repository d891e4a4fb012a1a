-- KEYS: session events ids deadlines warnings retired by-user by-project feed
-- ARGV: id, deadlines up to this may be swept.
-- Expires the session if its own record says that its deadline has passed.
-- Returns {1} if it did, {0} if the session is not due, {-1} if there is no
-- session and its keys have expired by themselves, {UNCERTAIN} if there is none
-- although they have not.
local id = ARGV[1]
local v, now = standing(), now_ms()
if not v[1] then
  local score = redis.call('ZSCORE', DEADLINES, id)
  if not score then return {0} end -- deleted since it was found
  if CLUSTER and tonumber(score) + KEEP > now then return {UNCERTAIN} end
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', WARNINGS, id)
  return {-1}
end
if v[1] ~= '0' then
  leave_live(id, v)
  redis.call('ZADD', RETIRED, v[7] or int(now + RETENTION), id)
  return {0}
end
local exp = tonumber(v[2])
if exp > math.min(tonumber(ARGV[2]), now) then -- the score was too early
  redis.call('ZADD', DEADLINES, v[2], id)
  return {0}
end
retire(id, v, '2', '', now)
return {1}
