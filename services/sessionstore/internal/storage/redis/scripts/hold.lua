-- KEYS: holds
-- ARGV: holder, the time in ms from which on sweeps are held ('' to release it).
if ARGV[2] == '' then
  redis.call('HDEL', HOLDS, ARGV[1])
else
  redis.call('HSET', HOLDS, ARGV[1], ARGV[2])
end
return {0}
