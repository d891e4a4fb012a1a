-- KEYS: session events ids gone deadlines warnings retired by-user by-project feed [request]
-- ARGV: id, as of, time in ms during which a replayed write must not recreate it.
-- Returns {0}, {-1} for none, or {AGAIN, request key} if the session has a request
-- key that was not declared.
local id, asof = ARGV[1], as_of(ARGV[2])
local there = redis.call('EXISTS', SESSION) == 1
if not there and not asof then return {-1} end
local request = undeclared_request()
if request then return {AGAIN, request} end
redis.call('SET', GONE, '', 'PX', ARGV[3])
if not there then return {0} end
remove(id)
redis.call('XADD', FEED, '*', 's', id, 'L', 'session:deleted', 'n', int(asof or now_ms()))
return {0}
