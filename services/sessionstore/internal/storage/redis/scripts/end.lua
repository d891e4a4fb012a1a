-- KEYS: session events ids deadlines warnings retired by-user by-project feed
-- ARGV: id, reason, as of, answer ('' for no session).
-- Returns {1, the session} where this call ended it, {0, the session} where it
-- is over already, {-1} for none.
local v = standing()
if not v[1] then return {-1} end
local now, asof, ended = now_ms(), as_of(ARGV[3]), 0
if v[1] == '0' and (asof or now) < tonumber(v[2]) then
  retire(ARGV[1], v, '1', ARGV[2], now, asof)
  ended = 1
end
return {ended, ARGV[4] ~= '' and record() or {}}
