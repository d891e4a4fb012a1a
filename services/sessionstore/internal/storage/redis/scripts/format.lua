-- KEYS: meta
-- ARGV: format. Raises the format of the data, never lowers it.
-- Returns {0, the format}.
local old = tonumber(redis.call('HGET', META, 'format') or '0')
if old < tonumber(ARGV[1]) then redis.call('HSET', META, 'format', ARGV[1]) end
return {0, redis.call('HGET', META, 'format')}
