-- ARGV: prefix, place of the first session, how many. Counts live sessions by
-- phase, as lifetime.Phase does: {looked at, active, idle, expiring, past the
-- deadline, at their cap}.
local from, n = tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local out = {0, 0, 0, 0, 0, 0}
for _, id in ipairs(redis.call('ZRANGE', P .. 'deadlines', from, from + n - 1)) do
  out[1] = out[1] + 1
  local v = redis.call('HMGET', key('session', id), 'exp', 'act', 'below', 'window', 'ext', 'max', 'cap')
  if v[1] then
    local exp = tonumber(v[1])
    local phase = 3
    if now >= exp then
      phase = 5
    elseif exp - now < tonumber(v[3]) then
      phase = 4
    elseif now - tonumber(v[2]) < tonumber(v[4]) then
      phase = 2
    end
    out[phase] = out[phase] + 1
    if tonumber(v[5]) >= tonumber(v[6]) or exp >= tonumber(v[7]) then out[6] = out[6] + 1 end
  end
end
return out
