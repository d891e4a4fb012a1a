-- KEYS: groups
-- ARGV: group, cursor. Moves the group's cursor forward, never back.
local old = redis.call('HGET', GROUPS, ARGV[1])
if not old then return {-1} end
if less(old, ARGV[2]) then redis.call('HSET', GROUPS, ARGV[1], ARGV[2]) end
return {0}
