-- KEYS: session events ids deadlines warnings retired by-user by-project [request]
-- ARGV: id.
-- Removes the session where its own record says that its retention has passed.
-- Returns {1} where it did, {0} where it must not or there is none, or {AGAIN,
-- request key} where it has one that was not declared.
local v = redis.call('HMGET', SESSION, 'st', 'purge')
if not v[1] or v[1] == '0' then
  redis.call('ZREM', RETIRED, ARGV[1])
  return {0}
end
if v[2] and tonumber(v[2]) > now_ms() then -- the score was too early
  redis.call('ZADD', RETIRED, v[2], ARGV[1])
  return {0}
end
local request = undeclared_request()
if request then return {AGAIN, request} end
remove(ARGV[1])
return {1}
