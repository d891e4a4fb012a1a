-- KEYS: session events ids feed [replayed]
-- ARGV: id, as of, then for each event: its id, its encoding for
-- the log, its encoding for the feed and, in a replay, the acknowledged cursor (''
-- for none). A replay declares replayed.
-- Returns {0, cursor...}, {-1} none, {-2} over.
local id, asof = ARGV[1], as_of(ARGV[2])
local ok = live(asof or now_ms())
if ok < 0 then return {ok} end
local out, step = {0}, asof and 4 or 3
local last, entry
local names, new = {}, {}
for i = 3, #ARGV, step do names[#names + 1] = ARGV[i] end
local known = chunked('HMGET', IDS, names, 1)
local here = {} -- what this call has appended
for i = 3, #ARGV, step do
  local name = ARGV[i]
  local at = known[#out] or here[name]
  if not at then
    local place = '*'
    if asof then
      last = last or last_id()
      place = follow(last, ARGV[i + 3] ~= '' and ARGV[i + 3] or int(asof) .. '-0')
      last = place
    end
    at = redis.call('XADD', EVENTS, place, 'i', name, 'e', ARGV[i + 1])
    here[name] = at
    new[#new + 1], new[#new + 2] = name, at
    entry = redis.call('XADD', FEED, '*', 's', id, 'e', ARGV[i + 2])
  end
  out[#out + 1] = at
end
chunked('HSET', IDS, new, 2)
if asof and entry then
  -- The feed has them as of now. What they may have extended must be left alone
  -- until the activity group has come as far as this.
  local from = redis.call('HGET', REPLAYED, 'from')
  redis.call('HSET', REPLAYED, 'from', int(math.min(asof, tonumber(from or asof))), 'to', entry)
end
local left = redis.call('PTTL', SESSION)
if left > 0 then
  redis.call('PEXPIRE', EVENTS, left)
  redis.call('PEXPIRE', IDS, left)
end
trim() -- last: it may empty IDS
return out
