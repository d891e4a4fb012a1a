-- ARGV: prefix, id, reason, retention, most events.
-- Returns {0} also for a session that is over already, {-1} for none.
local ok = live(ARGV[2], now_ms())
if ok == -1 then return {-1} end
if ok == 0 then retire(ARGV[2], '1', ARGV[3], now_ms(), tonumber(ARGV[4]), tonumber(ARGV[5])) end
return {0}
