-- KEYS: holds replayed groups feed deadlines warnings retired
-- ARGV: batch, settle_max, how long entries are kept that a group has not
-- acknowledged, entries kept with no group, the activity group's name, how long a
-- hold counts that is not moved.
-- Finds what is due on a shard, and trims its feed. It changes no session, because
-- it cannot declare the keys of sessions that it has yet to find. For each session
-- found, warn.lua, expire.lua or purge.lua declares the keys and checks the record.
-- Returns {now, deadlines up to this may be swept, warnings before this may be
-- given, due sessions held, entries trimmed, ids to warn, to expire, to purge, the
-- earliest hold or ''}.
local batch, settle = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()

-- The watermark: the append time of the first entry that the activity group has
-- not acknowledged. With nothing left to read it holds nothing back.
local groups = redis.call('HGETALL', GROUPS)
local watermark, acked, active
for i = 2, #groups, 2 do
  if groups[i - 1] == ARGV[5] then
    local first = redis.call('XRANGE', FEED, '(' .. groups[i], '+', 'COUNT', 1)[1]
    if first then
      watermark = tonumber(string.match(first[1], '^%d+'))
      active = groups[i]
    end
  end
  if not acked or less(groups[i], acked) then acked = groups[i] end
end

-- Events that were accepted long before they came into the feed take it back,
-- until the group has come as far as them.
local replayed = redis.call('HMGET', REPLAYED, 'from', 'to')
if replayed[1] then
  if active and less(active, replayed[2]) then
    watermark = math.min(watermark, tonumber(replayed[1]))
  else
    redis.call('DEL', REPLAYED)
  end
end

-- What is due from the earliest hold on is left alone, but for settle_max at
-- most, counted from when it was due: the hold may be older than that.
local from
local holds = redis.call('HGETALL', HOLDS)
for i = 1, #holds, 2 do
  local at = tonumber(holds[i + 1])
  if at < now - tonumber(ARGV[6]) then
    redis.call('HDEL', HOLDS, holds[i])
  else
    from = math.min(from or at, at)
  end
end
local due = now
if from then
  due = math.max(math.min(now, from), now - settle)
  watermark = math.min(watermark or from, from)
end
local warn = redis.call('ZRANGEBYSCORE', WARNINGS, '-inf', '(' .. int(due), 'LIMIT', 0, batch)

-- Deadlines up to this may be swept: those the watermark has passed, and those
-- that have waited for settle_max.
local upto = now
if watermark then upto = math.max(math.min(now, watermark - 1), now - settle - 1) end
local expire = redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', int(upto), 'LIMIT', 0, batch)
local held = redis.call('ZCOUNT', DEADLINES, '(' .. int(upto), int(now))
local purge = redis.call('ZRANGEBYSCORE', RETIRED, '-inf', int(now), 'LIMIT', 0, batch)

local trimmed = redis.call('XTRIM', FEED, 'MINID', '=', int(math.max(0, now - tonumber(ARGV[3]))))
if acked then
  -- MINID keeps the id itself, so the one acknowledged last stays until later.
  trimmed = trimmed + redis.call('XTRIM', FEED, 'MINID', '=', acked)
else
  trimmed = trimmed + redis.call('XTRIM', FEED, 'MAXLEN', '=', ARGV[4])
end
return {now, upto, due, held, trimmed, warn, expire, purge, from or ''}
