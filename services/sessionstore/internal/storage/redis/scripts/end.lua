-- KEYS: session events ids deadlines warnings retired by-user by-project feed
-- ARGV: id, reason, retention, most events, as of, answer ('' for no session).
-- Returns {1, the session} where this call ended it, {0, the session} where it
-- is over already, {-1} for none.
local now, asof = now_ms(), as_of(ARGV[5])
local ok = live(asof or now)
if ok == -1 then return {-1} end
if ok == 0 then retire(ARGV[1], '1', ARGV[2], now, tonumber(ARGV[3]), tonumber(ARGV[4]), asof) end
return {ok == 0 and 1 or 0, ARGV[6] ~= '' and record() or {}}
