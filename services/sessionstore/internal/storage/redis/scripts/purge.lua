-- KEYS: session events ids deadlines warnings retired by-user by-project [request]
-- ARGV: id.
-- Removes the session if its own record says that its retention has passed.
-- Returns {1} if it did, {0} if it is not due, {UNCERTAIN} if there is no session
-- although its keys have not expired, or {AGAIN, request key} if the session has a
-- request key that was not declared.
local id = ARGV[1]
local v, now = redis.call('HMGET', SESSION, 'st', 'purge'), now_ms()
if not v[1] then
  local score = redis.call('ZSCORE', RETIRED, id)
  if CLUSTER and score and tonumber(score) + 3600000 > now then return {UNCERTAIN} end
end
if not v[1] or v[1] == '0' then
  redis.call('ZREM', RETIRED, id)
  return {0}
end
if v[2] and tonumber(v[2]) > now then -- the score was too early
  redis.call('ZADD', RETIRED, v[2], id)
  return {0}
end
local request = undeclared_request()
if request then return {AGAIN, request} end
remove(id)
return {1}
