-- ARGV: prefix, id, expected revision, write id ('' for none), write ids
-- remembered, as of, then fields and values to set; a field named '-' deletes
-- the field its value names.
-- Returns {0, the session} also for a write id that was there before, {-1} none,
-- {-2} over, {-3} another revision.
local id, wid = ARGV[2], ARGV[4]
local s = key('session', id)
local v = redis.call('HMGET', s, 'st', 'exp', 'rev', 'wids')
if not v[1] then return {-1} end
local wids = v[4] or ''
if wid ~= '' and string.find(' ' .. wids .. ' ', ' ' .. wid .. ' ', 1, true) then return {0, record(id)} end
local at = as_of(ARGV[6]) or now_ms()
if v[1] ~= '0' or at >= tonumber(v[2]) then return {-2} end
if v[3] ~= ARGV[3] then return {-3} end
for i = 7, #ARGV, 2 do
  if ARGV[i] == '-' then
    redis.call('HDEL', s, ARGV[i + 1])
  else
    redis.call('HSET', s, ARGV[i], ARGV[i + 1])
  end
end
if wid ~= '' then
  wids = wids == '' and wid or wids .. ' ' .. wid
  local _, spaces = string.gsub(wids, ' ', ' ')
  if spaces >= tonumber(ARGV[5]) then wids = string.match(wids, ' (.*)$') end
  redis.call('HSET', s, 'wids', wids)
end
redis.call('HSET', s, 'upd', int(at))
redis.call('HINCRBY', s, 'rev', 1)
return {0, record(id)}
