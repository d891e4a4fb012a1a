-- ARGV: prefix, id, activity time ('' for now), event id, kind, traceparent,
-- most events, keep (ms after the deadline), causes remembered, decisions
-- remembered, kinds remembered, activities it stands for, as of, then kinds and
-- how many activities of each.
-- The rules are those of lifetime.Extend; the two are tested against each
-- other. Returns {-1} for none, else
-- {outcome, now, activity, state, policy, create, before: exp, ext, act, cause,
--  after: exp, ext, act, cause}.
local id = ARGV[2]
local s = key('session', id)
local v = redis.call('HMGET', s, 'st', 'exp', 'ext', 'act', 'cause', 'crt', 'step', 'max', 'below', 'minint', 'strategy', 'cap', 'pol', 'causes', 'forgot', 'dec', 'kinds', 'kind')
if not v[1] then return {-1} end
local asof = as_of(ARGV[13])
local now = asof or now_ms()
local at = now
if ARGV[3] ~= '' then at = math.min(tonumber(ARGV[3]), now) end
local exp, ext, act, cause = tonumber(v[2]), tonumber(v[3]), tonumber(v[4]), tonumber(v[5])
local step, max, below, minint, strat, cap = tonumber(v[7]), tonumber(v[8]), tonumber(v[9]), tonumber(v[10]), v[11], tonumber(v[12])
local EXTENDED, NOT_NEEDED, CAPPED, TOO_LATE, TOO_SOON, ENDED = 1, 2, 3, 4, 5, 6
local exp2, ext2, act2, cause2 = exp, ext, act, cause
local causes, forgot = v[14] or '', tonumber(v[15] or '0')

local function judge()
  if v[1] ~= '0' then return ENDED end
  if at >= exp then return TOO_LATE end
  act2 = math.max(act, at)
  if strat == '2' then
    if cause ~= 0 then
      if at <= cause then return NOT_NEEDED end
      if at - cause < minint then return TOO_SOON end
    end
  elseif strat == '3' then
    if ARGV[4] == '' then
      if at <= cause then return NOT_NEEDED end
    elseif string.find('\n' .. causes, '\n' .. ARGV[4] .. '\t', 1, true) or at <= forgot then
      return NOT_NEEDED
    end
  elseif exp - at >= below or at <= cause then
    return NOT_NEEDED
  end
  if ext >= max or exp >= cap then return CAPPED end
  return EXTENDED
end

local outcome = judge()
if outcome == EXTENDED then
  exp2, ext2, cause2 = math.min(exp + step, cap), ext + 1, math.max(cause, at)
end
local changes = {}
local function set(field, value)
  changes[#changes + 1] = field
  changes[#changes + 1] = value
end

-- What lifetime.History does: the newest decision is the first line, and one
-- that changed nothing takes the place of one before it with the same outcome.
local function remember()
  local dec, kinds = v[16] or '', v[17] or ';'
  local first = string.match(dec, '^[^\n]*')
  local _, act1, outcome1, _, _, _, _, n1, times1, event1 =
    string.match(first, '^(%d+) (%-?%d+) (%d) (%-?%d+) (%d+) (%-?%d+) (%-?%d+) (%d+) (%d+) (%S*)')
  if act1 and ARGV[4] ~= '' and event1 == ARGV[4] and act1 == int(at) then return end
  if asof then
    -- Replayed again, or reported before: it need not be the last one.
    for line in string.gmatch(dec, '[^\n]+') do
      local when, act3, event, kind = string.match(line, '^(%d+) (%-?%d+) %d %-?%d+ %d+ %-?%d+ %-?%d+ %d+ %d+ (%S*) (.*)$')
      if act3 == int(at) and event == ARGV[4] and (event ~= '' or when == int(now) and kind == ARGV[5]) then return end
    end
  end
  local n, times = tonumber(ARGV[12]), 1
  if act1 and outcome ~= EXTENDED and tonumber(outcome1) == outcome then
    n, times = n + tonumber(n1), times + tonumber(times1)
    dec = string.sub(dec, #first + 2)
  end
  dec = table.concat({int(now), int(at), outcome, int(exp), int(ext), int(cause), int(exp2), int(n), int(times), ARGV[4], ARGV[5]}, ' ') .. '\n' .. dec
  local _, lines = string.gsub(dec, '\n', '\n')
  if lines > tonumber(ARGV[10]) then dec = string.match(dec, '^(.*\n)[^\n]*\n$') end
  set('dec', dec)
  if outcome == TOO_LATE or outcome == ENDED then return end
  if at >= act or (v[18] or '') == '' then set('kind', ARGV[5]) end
  for i = 14, #ARGV, 2 do
    local kind, more = ARGV[i], tonumber(ARGV[i + 1])
    local from, to, old = string.find(kinds, ';' .. kind .. '=(%d+);')
    if not from then
      local _, known = string.gsub(kinds, '=', '=')
      if known >= tonumber(ARGV[11]) then
        kind = 'other'
        from, to, old = string.find(kinds, ';other=(%d+);')
      end
    end
    if from then
      kinds = string.sub(kinds, 1, from) .. kind .. '=' .. int(tonumber(old) + more) .. string.sub(kinds, to)
    else
      kinds = kinds .. kind .. '=' .. int(more) .. ';'
    end
  end
  if #ARGV > 13 then set('kinds', kinds) end
end
remember()

if outcome == EXTENDED then
  redis.call('HSET', s, 'exp', int(exp2), 'ext', int(ext2), 'act', int(act2), 'cause', int(cause2), unpack(changes))
  redis.call('HINCRBY', s, 'rev', 1)
  if strat == '3' then
    causes = causes .. ARGV[4] .. '\t' .. int(at) .. '\n'
    local _, n = string.gsub(causes, '\n', '\n')
    while n > tonumber(ARGV[9]) do
      local first, rest = string.match(causes, '^([^\n]*)\n(.*)$')
      forgot = math.max(forgot, tonumber(string.match(first, '\t(%d+)$')))
      causes, n = rest, n - 1
    end
    redis.call('HSET', s, 'causes', causes, 'forgot', int(forgot))
  end
  redis.call('ZADD', P .. 'deadlines', int(exp2), id)
  redis.call('ZADD', P .. 'warnings', int(exp2 - below), id)
  lifecycle(id, 'session:extended', now, tonumber(ARGV[7]), {
    'x', int(exp2), 'c', int(ext2), 'b', int(exp), 'm', int(max), 'a', int(at), 'k', ARGV[5], 'i', ARGV[4], 'p', ARGV[6]}, asof)
  keep_until(id, (asof and math.max(exp2, now_ms()) or exp2) + tonumber(ARGV[8]))
else
  if act2 ~= act then set('act', int(act2)) end
  if #changes > 0 then redis.call('HSET', s, unpack(changes)) end
end
return {outcome, int(now), int(at), v[1], v[13], v[6], int(exp), int(ext), int(act), int(cause), int(exp2), int(ext2), int(act2), int(cause2)}
