-- KEYS: consumers
-- ARGV: consumer, time in ms after which one that was not heard of has left.
-- Notes that a consumer of a group lives. Returns {how many do}. One that was heard of
-- in the future was so before the server's clock went back, and if it lives it is heard
-- of again; else it would keep its part of the shards until then.
local now = now_ms()
redis.call('ZADD', CONSUMERS, int(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', CONSUMERS, '-inf', int(now - tonumber(ARGV[2])))
redis.call('ZREMRANGEBYSCORE', CONSUMERS, int(now + tonumber(ARGV[2])), '+inf')
return {redis.call('ZCARD', CONSUMERS)}
