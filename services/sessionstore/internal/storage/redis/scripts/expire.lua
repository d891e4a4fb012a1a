-- KEYS: session events ids deadlines warnings retired by-user by-project feed
-- ARGV: id, deadlines up to this may be swept.
-- Expires the session where its own record says that its deadline has passed.
-- Returns {1} where it did, {0} where it must not, {-1} where there is no such
-- session.
local id = ARGV[1]
local v = standing()
if not v[1] then
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', WARNINGS, id)
  return {-1}
end
local now = now_ms()
if v[1] ~= '0' then
  delist(id)
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
