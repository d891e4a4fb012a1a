-- ARGV: prefix, id, most events, as of, then for each event: its id, its
-- encoding for the log, its encoding for the feed, and where it is replayed the
-- cursor that the caller was told ('' for none).
-- Returns {0, cursor...}, {-1} none, {-2} over.
local id, most, asof = ARGV[2], tonumber(ARGV[3]), as_of(ARGV[4])
local ok = live(id, asof or now_ms())
if ok < 0 then return {ok} end
local log, ids, feed = key('events', id), key('ids', id), P .. 'feed'
local out, step = {0}, asof and 4 or 3
local last, entry
local names, new = {}, {}
for i = 5, #ARGV, step do names[#names + 1] = ARGV[i] end
local known = chunked('HMGET', ids, names, 1)
local here = {} -- what this call has appended
for i = 5, #ARGV, step do
  local name = ARGV[i]
  local at = known[#out] or here[name]
  if not at then
    local place = '*'
    if asof then
      last = last or last_of(log)
      place = follow(last, ARGV[i + 3] ~= '' and ARGV[i + 3] or int(asof) .. '-0')
      last = place
    end
    at = redis.call('XADD', log, place, 'i', name, 'e', ARGV[i + 1])
    here[name] = at
    new[#new + 1], new[#new + 2] = name, at
    entry = redis.call('XADD', feed, '*', 's', id, 'e', ARGV[i + 2])
  end
  out[#out + 1] = at
end
chunked('HSET', ids, new, 2)
if asof and entry then
  -- The feed has them as of now. What they may have extended must be left alone
  -- until the activity group has come as far as this.
  local from = redis.call('HGET', P .. 'replayed', 'from')
  redis.call('HSET', P .. 'replayed', 'from', int(math.min(asof, tonumber(from or asof))), 'to', entry)
end
trim(id, most)
local left = redis.call('PTTL', key('session', id))
if left > 0 then
  redis.call('PEXPIRE', log, left)
  redis.call('PEXPIRE', ids, left)
end
return out
