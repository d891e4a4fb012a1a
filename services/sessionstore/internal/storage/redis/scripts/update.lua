-- KEYS: session
-- ARGV: expected revision, write ids with spaces between them ('' for none), write
-- ids remembered, as of, how many updates these are, then fields and values to set; a
-- field named '-' deletes the field its value names.
-- Returns {0, the session} also for write ids that were there before, {-1} none,
-- {-2} over, {-3} another revision.
local wid = ARGV[2]
local v = redis.call('HMGET', SESSION, 'st', 'exp', 'rev', 'wids')
if not v[1] then return {-1} end
local wids = v[4] or ''
if wid ~= '' and string.find(' ' .. wids .. ' ', ' ' .. wid .. ' ', 1, true) then return {0, record()} end
local at = as_of(ARGV[4]) or now_ms()
if v[1] ~= '0' or at >= tonumber(v[2]) then return {-2} end
if v[3] ~= ARGV[1] then return {-3} end
for i = 6, #ARGV, 2 do
  if ARGV[i] == '-' then
    redis.call('HDEL', SESSION, ARGV[i + 1])
  else
    redis.call('HSET', SESSION, ARGV[i], ARGV[i + 1])
  end
end
if wid ~= '' then
  wids = wids == '' and wid or wids .. ' ' .. wid
  local _, spaces = string.gsub(wids, ' ', ' ')
  for _ = tonumber(ARGV[3]), spaces do wids = string.match(wids, ' (.*)$') end
  redis.call('HSET', SESSION, 'wids', wids)
end
redis.call('HSET', SESSION, 'upd', int(at))
redis.call('HINCRBY', SESSION, 'rev', ARGV[5])
return {0, record()}
