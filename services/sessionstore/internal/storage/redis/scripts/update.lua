-- ARGV: prefix, id, expected revision, then fields and values to set; a field
-- named '-' deletes the field its value names.
-- Returns {0}, {-1} none, {-2} over, {-3} another revision.
local id = ARGV[2]
local now = now_ms()
local ok = live(id, now)
if ok < 0 then return {ok} end
local s = key('session', id)
if redis.call('HGET', s, 'rev') ~= ARGV[3] then return {-3} end
for i = 4, #ARGV, 2 do
  if ARGV[i] == '-' then
    redis.call('HDEL', s, ARGV[i + 1])
  else
    redis.call('HSET', s, ARGV[i], ARGV[i + 1])
  end
end
redis.call('HSET', s, 'upd', int(now))
redis.call('HINCRBY', s, 'rev', 1)
return {0}
