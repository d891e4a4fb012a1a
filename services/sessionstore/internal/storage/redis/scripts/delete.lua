-- ARGV: prefix, id. Returns {0}, or {-1} for none.
local id = ARGV[2]
if redis.call('EXISTS', key('session', id)) == 0 then return {-1} end
remove(id)
redis.call('XADD', P .. 'feed', '*', 's', id, 'L', 'session:deleted', 'n', int(now_ms()))
return {0}
