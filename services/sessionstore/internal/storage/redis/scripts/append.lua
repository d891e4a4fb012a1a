-- ARGV: prefix, id, most events, then for each event: its id, its encoding for
-- the log, its encoding for the feed.
-- Returns {0, cursor...}, {-1} none, {-2} over.
local id, most = ARGV[2], tonumber(ARGV[3])
local ok = live(id, now_ms())
if ok < 0 then return {ok} end
local log, ids, feed = key('events', id), key('ids', id), P .. 'feed'
local out = {0}
for i = 4, #ARGV, 3 do
  local at = redis.call('HGET', ids, ARGV[i])
  if not at then
    at = redis.call('XADD', log, '*', 'i', ARGV[i], 'e', ARGV[i + 1])
    redis.call('HSET', ids, ARGV[i], at)
    redis.call('XADD', feed, '*', 's', id, 'e', ARGV[i + 2])
  end
  out[#out + 1] = at
end
trim(id, most)
local left = redis.call('PTTL', key('session', id))
if left > 0 then
  redis.call('PEXPIRE', log, left)
  redis.call('PEXPIRE', ids, left)
end
return out
