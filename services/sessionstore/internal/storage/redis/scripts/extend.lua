-- KEYS: session [events ids deadlines warnings feed]
-- ARGV: id, activity time ('' for now), event id, kind, traceparent, number of
-- activities it represents, as of, then each kind and its count.
-- The rules are those of lifetime.Extend and lifetime.History; each is tested
-- against its reference. Returns {-1} for none, else {outcome, now, activity,
-- state, policy, create, before: exp, ext, act, cause, after: act}, and where
-- the session was extended {..., after: exp, ext, cause}. Only an extension
-- needs more than the session: without the other keys it returns {AGAIN, activity}.
--
-- Nearly every report is of activity that changes no deadline and follows one
-- like it. That takes one read and one write, and none of the lib.
local id, event, kind = ARGV[1], ARGV[3], ARGV[4]
local v = redis.call('HMGET', SESSION, 'st', 'exp', 'ext', 'act', 'cause', 'crt', 'pol', 'last', 'kind', 'below', 'strategy')
if not v[1] then return {-1} end
local asof = ARGV[7] ~= '' and tonumber(string.match(ARGV[7], '^%d+'))
local time = redis.call('TIME')
local now = asof or time[1] * 1000 + math.floor(time[2] / 1000)
local at = now
if ARGV[2] ~= '' then at = math.min(tonumber(ARGV[2]), now) end
local exp, ext, act, cause, below, strat = tonumber(v[2]), tonumber(v[3]), tonumber(v[4]), tonumber(v[5]), tonumber(v[10]), v[11]
local act2, causes, forgot, step, cap = act, '', 0, nil, nil
local EXTENDED, NOT_NEEDED, CAPPED, TOO_LATE, TOO_SOON, ENDED = 1, 2, 3, 4, 5, 6

-- Written without a function, since to make one takes memory for each variable
-- that it shares.
local outcome
if v[1] ~= '0' then
  outcome = ENDED
elseif at >= exp then
  outcome = TOO_LATE
else
  if at > act then act2 = at end
  if strat == '2' then
    if cause ~= 0 then
      if at <= cause then
        outcome = NOT_NEEDED
      elseif at - cause < tonumber(redis.call('HGET', SESSION, 'minint')) then
        outcome = TOO_SOON
      end
    end
  elseif strat == '3' then
    local c = redis.call('HMGET', SESSION, 'causes', 'forgot')
    causes, forgot = c[1] or '', tonumber(c[2] or '0')
    if event == '' then
      if at <= cause then outcome = NOT_NEEDED end
    elseif string.find('\n' .. causes, '\n' .. event .. '\t', 1, true) or at <= forgot then
      outcome = NOT_NEEDED
    end
  elseif exp - at >= below or at <= cause then
    outcome = NOT_NEEDED
  end
  if not outcome then
    local t = redis.call('HMGET', SESSION, 'step', 'max', 'cap')
    step, cap = tonumber(t[1]), tonumber(t[3])
    outcome = (ext >= tonumber(t[2]) or exp >= cap) and CAPPED or EXTENDED
  end
end

if outcome == EXTENDED and not EVENTS then return {-4, at} end

local n = tonumber(ARGV[6])
local reply = {outcome, now, at, v[1], v[7], v[6], v[2], v[3], v[4], v[5], act2}

-- The last decision has a field of its own: outcome, activities, reports, how
-- many of the activities `kinds` is done with, activity time, event id, kind, then
-- time, exp, ext, cause before it and exp after it.
local last = v[8] or ''
local outcome1, n1, times1, done1, at1, event1, kind1 = string.match(last, '^(%d) (%d+) (%d+) (%d+) (%-?%d+) (%S*) (%S*) ')
local judged = outcome ~= TOO_LATE and outcome ~= ENDED

-- Numbers up to this are spelled out when they are concatenated.
local PLAIN = 1e14
if outcome1 and not asof and outcome ~= EXTENDED and judged and tonumber(outcome1) == outcome and kind1 == kind
  and (#ARGV == 7 or #ARGV == 9 and ARGV[8] == kind) and (event == '' or event ~= event1) and n1 + n < PLAIN and now < PLAIN then
  local when = now .. ''
  local act_at = at == now and when or at .. ''
  if #ARGV == 7 then done1 = done1 + n end -- counts for no kind
  local line = outcome1 .. ' ' .. n1 + n .. ' ' .. times1 + 1 .. ' ' .. done1 .. ' ' .. act_at .. ' ' .. event .. ' ' .. kind .. ' '
    .. when .. ' ' .. v[2] .. ' ' .. v[3] .. ' ' .. v[5] .. ' ' .. v[2]
  if at > act then
    redis.call('HSET', SESSION, 'last', line, 'act', act_at)
  else
    redis.call('HSET', SESSION, 'last', line)
  end
  if v[9] ~= kind and (at >= act or (v[9] or '') == '') then redis.call('HSET', SESSION, 'kind', kind) end
  return reply
end

--@lib
as_of(ARGV[7])
local exp2, ext2, cause2 = exp, ext, cause
if outcome == EXTENDED then
  exp2, ext2, cause2 = math.min(exp + step, cap), ext + 1, math.max(cause, at)
end
local changes = {}
local function set(field, value)
  changes[#changes + 1] = field
  changes[#changes + 1] = value
end

-- Counts activities of a kind; kinds is ';a=1;b=2;'. A kind may look like a
-- pattern, so it is found as it is.
local function count(kinds, name, more)
  local from, to = string.find(kinds, ';' .. name .. '=', 1, true)
  if not from then
    local _, known = string.gsub(kinds, '=', '=')
    if known >= MAX_KINDS then
      name = 'other'
      from, to = string.find(kinds, ';other=', 1, true)
    end
  end
  if not from then return kinds .. name .. '=' .. int(more) .. ';' end
  local old = string.match(kinds, '^%d+', to + 1)
  return string.sub(kinds, 1, to) .. int(tonumber(old) + more) .. string.sub(kinds, to + 1 + #old)
end

-- What lifetime.History does: a decision that changed nothing takes the place of
-- one before it with the same outcome. In `dec` are those before the last, the
-- newest first: time, activity time, outcome, exp, ext, cause, exp after it,
-- activities, reports, event id, kind.
local function remember()
  if outcome1 and event ~= '' and event1 == event and at1 == int(at) then return end
  local h = redis.call('HMGET', SESSION, 'dec', 'kinds')
  local dec, kinds = h[1] or '', h[2] or ';'
  local line = ''
  if outcome1 then
    local rest = string.match(last, '^%S+ %S+ %S+ %S+ %S+ %S* %S* (.*)$')
    local now1, exp1, ext1, cause1, after1 = string.match(rest, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    line = table.concat({now1, at1, outcome1, exp1, ext1, cause1, after1, n1, times1, event1, kind1}, ' ') .. '\n'
  end
  if asof then
    -- Replayed again, or reported before: it need not be the last one.
    for old in string.gmatch(line .. dec, '[^\n]+') do
      local when, act3, event3, kind3 = string.match(old, '^(%d+) (%-?%d+) %d %-?%d+ %d+ %-?%d+ %-?%d+ %d+ %d+ (%S*) (.*)$')
      if act3 == int(at) and event3 == event and (event ~= '' or when == int(now) and kind3 == kind) then return end
    end
  end
  local times = 1
  if outcome1 and outcome ~= EXTENDED and tonumber(outcome1) == outcome then
    n, times = n + tonumber(n1), times + tonumber(times1)
  elseif outcome1 then
    dec = line .. dec
    local _, lines = string.gsub(dec, '\n', '\n')
    if lines >= MAX_DECISIONS then dec = string.match(dec, '^(.*\n)[^\n]*\n$') or '' end
    set('dec', dec)
  end
  set('last', table.concat({outcome, int(n), int(times), int(n), int(at), event, kind, int(now), v[2], v[3], v[5], int(exp2)}, ' '))
  local before = kinds
  if outcome1 and done1 ~= n1 then kinds = count(kinds, kind1, n1 - done1) end
  if judged then
    if at >= act or (v[9] or '') == '' then set('kind', kind) end
    for i = 8, #ARGV, 2 do kinds = count(kinds, ARGV[i], tonumber(ARGV[i + 1])) end
  end
  if kinds ~= before then set('kinds', kinds) end
end
remember()

if outcome ~= EXTENDED then
  if act2 ~= act then set('act', int(act2)) end
  if #changes > 0 then redis.call('HSET', SESSION, unpack(changes)) end
  return reply
end

if strat == '3' then
  causes = causes .. event .. '\t' .. int(at) .. '\n'
  local _, known = string.gsub(causes, '\n', '\n')
  while known > MAX_CAUSES do
    local first, rest = string.match(causes, '^([^\n]*)\n(.*)$')
    forgot = math.max(forgot, tonumber(string.match(first, '\t(%d+)$')))
    causes, known = rest, known - 1
  end
  set('causes', causes)
  set('forgot', int(forgot))
end
redis.call('HSET', SESSION, 'exp', int(exp2), 'ext', int(ext2), 'act', int(act2), 'cause', int(cause2), unpack(changes))
redis.call('HINCRBY', SESSION, 'rev', 1)
redis.call('ZADD', DEADLINES, int(exp2), id)
redis.call('ZADD', WARNINGS, int(exp2 - below), id)
local max = redis.call('HGET', SESSION, 'max')
keep_until((asof and math.max(exp2, now_ms()) or exp2) + KEEP)
lifecycle(id, 'session:extended', now, {
  'x', int(exp2), 'c', int(ext2), 'b', v[2], 'm', max, 'a', int(at), 'k', kind, 'i', event, 'p', ARGV[5]}, asof)
reply[12], reply[13], reply[14] = exp2, ext2, cause2
return reply
