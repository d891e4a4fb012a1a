-- ARGV: prefix, id, reason, retention, most events, as of.
-- Returns {0, the session} also for one that is over already, {-1} for none.
local now, asof = now_ms(), as_of(ARGV[6])
local ok = live(ARGV[2], asof or now)
if ok == -1 then return {-1} end
if ok == 0 then retire(ARGV[2], '1', ARGV[3], now, tonumber(ARGV[4]), tonumber(ARGV[5]), asof) end
return {0, record(ARGV[2])}
