-- KEYS: session deadlines warnings retired by-user by-project
-- ARGV: id, its members of by-user and of by-project ('' for unknown).
-- Removes the index entries of a session whose record no longer exists. Returns
-- {the number of entries}.
if redis.call('EXISTS', SESSION) == 1 then return {0} end
local n = redis.call('ZREM', DEADLINES, ARGV[1]) + redis.call('ZREM', WARNINGS, ARGV[1]) + redis.call('ZREM', RETIRED, ARGV[1])
if ARGV[2] ~= '' then n = n + redis.call('ZREM', BY_USER, ARGV[2]) end
if ARGV[3] ~= '' then n = n + redis.call('ZREM', BY_PROJECT, ARGV[3]) end
return {n}
