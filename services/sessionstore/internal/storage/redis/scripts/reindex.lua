-- KEYS: session events ids deadlines warnings retired by-user by-project [request]
-- ARGV: id.
-- Makes every index agree with the session's own record. request is declared
-- where the record names one.
-- Returns {1} if it corrected an entry, {0} if all entries were correct, {-1} if
-- there is no session.
local id = ARGV[1]
local v = redis.call('HMGET', SESSION, 'st', 'exp', 'below', 'um', 'pm', 'purge', 'warned', 'cap')
if not v[1] then return {-1} end
if not v[5] then return redis.error_reply('ERR malformed record') end
local now, mended = now_ms(), false

local function put(index, member, score)
  local old = redis.call('ZSCORE', index, member)
  if old and tonumber(old) == tonumber(score) then return end
  redis.call('ZADD', index, score, member)
  mended = true
end
local function take_out(index, member)
  if redis.call('ZREM', index, member) == 1 then mended = true end
end
-- A deadline that moved without its safety net would take the session with it.
local function outlast(k, at)
  local left = redis.call('PTTL', k)
  if left >= 0 and now + left < at - 1000 then
    redis.call('PEXPIREAT', k, int(at))
    mended = true
  end
end

if v[1] ~= '0' then
  take_out(DEADLINES, id)
  take_out(WARNINGS, id)
  if v[4] then take_out(BY_USER, v[4]) end
  take_out(BY_PROJECT, v[5])
  if not v[6] then
    v[6] = int(now + RETENTION)
    redis.call('HSET', SESSION, 'purge', v[6])
  end
  put(RETIRED, id, v[6])
  return {mended and 1 or 0}
end

local exp = tonumber(v[2])
local warn_at = exp - tonumber(v[3])
take_out(RETIRED, id)
put(DEADLINES, id, v[2])
if v[4] then put(BY_USER, v[4], 0) end
put(BY_PROJECT, v[5], 0)

-- Whether the log has session:expiring for this deadline: earlier versions append
-- it and leave no mark, or that of an earlier deadline.
local function logged()
  for _, entry in ipairs(redis.call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1000)) do
    local f = entry[2]
    if f[1] == 'L' and f[2] == 'session:expiring' then
      for i = 3, #f, 2 do
        if f[i] == 'x' then return f[i + 1] == v[2] end
      end
    end
  end
  return false
end
if exp > now and v[7] ~= v[2] then
  local score = redis.call('ZSCORE', WARNINGS, id)
  if (not score or tonumber(score) ~= warn_at) and (warn_at >= now or not logged()) then
    put(WARNINGS, id, int(warn_at))
  end
end

for _, k in ipairs({SESSION, EVENTS, IDS}) do outlast(k, exp + KEEP) end
if REQUEST and redis.call('GET', REQUEST) == id then outlast(REQUEST, tonumber(v[8]) + LINGER) end
return {mended and 1 or 0}
