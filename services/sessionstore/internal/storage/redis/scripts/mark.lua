-- KEYS: marks [meta]
-- ARGV: replica, its mark that was acknowledged last ('' for none), the losses to
-- remember ('' for no change), the losses as the caller read them before, a time after
-- which the mark is to be.
-- Writes the replica's mark, which only grows, and returns the one that was there.
-- A replica that finds none, or an earlier one, although it has an acknowledged one does
-- not write: the caller concludes from that, and may not get the first reply. A write that Redis refuses (full memory) fails nothing
-- that is read.
-- Returns {1 if the mark was written and else 0, the mark found ('' for none), the
-- mark written, the highest mark that was removed ('0' for none), without a mark of
-- its own the newest mark of others before its acknowledged one ('0' for none), the
-- losses, then with meta: shards, format, epoch ('' for none)}.
local own, acked = 'at:' .. ARGV[1], tonumber(ARGV[2])
local v = redis.call('HMGET', MARKS, own, 'removed', 'lost')
local now = now_ms()
local found, removed, lost, newest = tonumber(v[1] or nil), tonumber(v[2] or '0'), v[3] or '', 0
local mark = int(math.max(now, (found or 0) + 1, (acked or 0) + 1, tonumber(ARGV[5]) + 1))

-- Marks of replicas that have not been here for a day, or that are too many, make
-- room. What was removed proves that the data was there then.
local old = {}
if not found then
  local marks, all = {}, redis.call('HGETALL', MARKS)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 3) == 'at:' then
      marks[#marks + 1] = {tonumber(all[i + 1]), all[i]}
    end
  end
  table.sort(marks, function(a, b) return a[1] > b[1] end)
  for i, m in ipairs(marks) do
    if acked and m[1] < acked then newest = math.max(newest, m[1]) end
    if not acked and (i >= MAX_MARKS or m[1] < now - 86400000) then
      old[#old + 1] = m[2]
      removed = math.max(removed, m[1])
    end
  end
end

local wrote = 0
if not acked or found and found >= acked then
  local done = redis.pcall('HSET', MARKS, own, mark, 'removed', int(removed))
  if type(done) ~= 'table' then wrote = 1 end
end
if ARGV[3] ~= '' and lost == ARGV[4] then
  local done = redis.pcall('HSET', MARKS, 'lost', ARGV[3])
  if type(done) ~= 'table' then lost = ARGV[3] end
end
if wrote == 1 and #old > 0 then redis.call('HDEL', MARKS, unpack(old, 1, math.min(#old, 1000))) end
local out = {wrote, v[1] or '', mark, int(removed), int(newest), lost}
if META then
  local m = redis.call('HMGET', META, 'shards', 'format', 'epoch')
  for i = 1, 3 do out[6 + i] = m[i] or '' end
end
return out
