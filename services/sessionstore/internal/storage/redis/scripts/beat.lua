-- KEYS: consumers
-- ARGV: consumer, time in ms after which one that was not heard of has left.
-- Notes that a consumer of a group lives. Returns {how many do}.
local now = now_ms()
redis.call('ZADD', CONSUMERS, int(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', CONSUMERS, '-inf', int(now - tonumber(ARGV[2])))
return {redis.call('ZCARD', CONSUMERS)}
