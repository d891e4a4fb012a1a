-- ARGV: prefix, project, encoded policy ('' to delete). Returns {0}, or {-1}
-- when there was none to delete.
if ARGV[3] == '' then
  redis.call('ZREM', P .. 'projects', ARGV[2])
  return {redis.call('HDEL', P .. 'policies', ARGV[2]) - 1}
end
redis.call('HSET', P .. 'policies', ARGV[2], ARGV[3])
redis.call('ZADD', P .. 'projects', 0, ARGV[2])
return {0}
