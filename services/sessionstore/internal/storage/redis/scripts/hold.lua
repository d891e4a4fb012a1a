-- ARGV: prefix, holder, from when on sweeps are held ('' to give it up).
if ARGV[3] == '' then
  redis.call('HDEL', P .. 'holds', ARGV[2])
else
  redis.call('HSET', P .. 'holds', ARGV[2], ARGV[3])
end
return {0}
