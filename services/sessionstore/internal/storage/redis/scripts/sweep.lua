-- ARGV: prefix, batch, settle_max, retention, most events, how long entries
-- are kept that a group has not acknowledged, entries kept with no group, the
-- activity group's name.
-- Returns {warned, expired, purged, trimmed, held, the most of any it looked at}.
local batch, settle, retention, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local feed = P .. 'feed'

-- The watermark: the append time of the first entry that the activity group has
-- not acknowledged. With nothing left to read it holds nobody up.
local groups = redis.call('HGETALL', P .. 'groups')
local watermark, acked, active
for i = 2, #groups, 2 do
  if groups[i - 1] == ARGV[8] then
    local first = redis.call('XRANGE', feed, '(' .. groups[i], '+', 'COUNT', 1)[1]
    if first then
      watermark = tonumber(string.match(first[1], '^%d+'))
      active = groups[i]
    end
  end
  if not acked or less(groups[i], acked) then acked = groups[i] end
end

-- Events that were accepted long before they came into the feed take it back,
-- until the group has come as far as them.
local replayed = redis.call('HMGET', P .. 'replayed', 'from', 'to')
if replayed[1] then
  if active and less(active, replayed[2]) then
    watermark = math.min(watermark, tonumber(replayed[1]))
  else
    redis.call('DEL', P .. 'replayed')
  end
end

-- What is due from the earliest hold on is left alone, but for settle_max at
-- most.
local from
local holds = redis.call('HGETALL', P .. 'holds')
for i = 1, #holds, 2 do
  local at = tonumber(holds[i + 1])
  if at < now - settle then
    redis.call('HDEL', P .. 'holds', holds[i])
  else
    from = math.min(from or at, at)
  end
end
local due = now
if from then
  due = math.max(math.min(now, from), now - settle)
  watermark = math.min(watermark or from, from)
end

local warned, looked = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'warnings', '-inf', '(' .. int(due), 'LIMIT', 0, batch)) do
  looked = looked + 1
  redis.call('ZREM', P .. 'warnings', id)
  local exp = redis.call('HGET', key('session', id), 'exp')
  if exp and tonumber(exp) > now then
    lifecycle(id, 'session:expiring', now, most, {'x', exp})
    warned = warned + 1
  end
end

-- Deadlines up to this may be swept: those the watermark has passed, and those
-- that have waited for settle_max.
local upto = now
if watermark then upto = math.max(math.min(now, watermark - 1), now - settle - 1) end
local expired, seen, gone = 0, 0, false
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', int(upto), 'LIMIT', 0, batch)) do
  seen = seen + 1
  if redis.call('EXISTS', key('session', id)) == 1 then
    retire(id, '2', '', now, retention, most)
    expired = expired + 1
  else
    redis.call('ZREM', P .. 'deadlines', id)
    gone = true
  end
end
-- Sessions that nobody swept until the safety net took their keys: what they
-- left in the indexes is found by reading through one of them, once for all.
if gone then
  local from = '-'
  repeat
    local members = redis.call('ZRANGEBYLEX', P .. 'by-project', from, '+', 'LIMIT', 0, 1000)
    for _, m in ipairs(members) do
      local project, user, id = string.match(m, '^([^%z]*)%z([^%z]*)%z([^%z]*)$')
      if id and redis.call('EXISTS', key('session', id)) == 0 then
        redis.call('ZREM', P .. 'by-project', m)
        redis.call('ZREM', P .. 'by-user', user .. '\0' .. project .. '\0' .. id)
        redis.call('ZREM', P .. 'deadlines', id)
        redis.call('ZREM', P .. 'warnings', id)
      end
    end
    if #members > 0 then from = '(' .. members[#members] end
  until #members < 1000
end
local held = redis.call('ZCOUNT', P .. 'deadlines', '(' .. int(upto), int(now))

local purged = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'retired', '-inf', int(now), 'LIMIT', 0, batch)) do
  remove(id)
  redis.call('ZREM', P .. 'retired', id)
  purged = purged + 1
end

local trimmed = redis.call('XTRIM', feed, 'MINID', '=', int(math.max(0, now - tonumber(ARGV[6]))))
if acked then
  local ms, seq = string.match(acked, '^(%d+)-(%d+)$')
  -- MINID keeps the id itself, so the one acknowledged last stays until later.
  trimmed = trimmed + redis.call('XTRIM', feed, 'MINID', '=', ms .. '-' .. seq)
else
  trimmed = trimmed + redis.call('XTRIM', feed, 'MAXLEN', '=', ARGV[7])
end
return {warned, expired, purged, trimmed, held, math.max(looked, seen, purged)}
