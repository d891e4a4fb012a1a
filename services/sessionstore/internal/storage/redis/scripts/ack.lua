-- ARGV: prefix, group, cursor. Moves the group's cursor forward, never back.
local old = redis.call('HGET', P .. 'groups', ARGV[2])
if not old then return {-1} end
local am, as = string.match(old, '^(%d+)-(%d+)$')
local bm, bs = string.match(ARGV[3], '^(%d+)-(%d+)$')
local forward
if tonumber(am) ~= tonumber(bm) then
  forward = tonumber(am) < tonumber(bm)
elseif #as ~= #bs then
  forward = #as < #bs
else
  forward = as < bs
end
if forward then redis.call('HSET', P .. 'groups', ARGV[2], ARGV[3]) end
return {0}
