-- ARGV: prefix, id, as of, how long (ms) a replayed write must not bring it back.
-- Returns {0}, or {-1} for none.
local id, asof = ARGV[2], as_of(ARGV[3])
local there = redis.call('EXISTS', key('session', id)) == 1
if not there and not asof then return {-1} end
redis.call('SET', key('gone', id), '', 'PX', ARGV[4])
if not there then return {0} end
remove(id)
redis.call('XADD', P .. 'feed', '*', 's', id, 'L', 'session:deleted', 'n', int(asof or now_ms()))
return {0}
