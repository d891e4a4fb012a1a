-- ARGV: prefix, index prefix of the user, member to start after ('' for the
-- beginning), batch, reason, retention, most events, then ids to leave alone.
-- Returns {ended, last member looked at, '' when done}.
local from = ARGV[3] == '' and ('[' .. ARGV[2]) or ('(' .. ARGV[3])
local batch = tonumber(ARGV[4])
local skip = {}
for i = 8, #ARGV do skip[ARGV[i]] = true end
-- After the prefix: its last byte, which is NUL, plus one.
local members = redis.call('ZRANGEBYLEX', P .. 'by-user', from, '(' .. string.sub(ARGV[2], 1, -2) .. '\1', 'LIMIT', 0, batch)
local now = now_ms()
local n = 0
for _, m in ipairs(members) do
  local id = string.match(m, '[^%z]*$')
  if not skip[id] and live(id, now) == 0 then
    retire(id, '1', ARGV[5], now, tonumber(ARGV[6]), tonumber(ARGV[7]))
    n = n + 1
  end
end
return {n, #members == batch and members[#members] or ''}
