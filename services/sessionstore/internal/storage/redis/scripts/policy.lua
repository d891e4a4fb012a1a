-- KEYS: policies projects
-- ARGV: project, encoded policy ('' to delete). Returns {0}, or {-1} when there
-- was none to delete.
if ARGV[2] == '' then
  redis.call('ZREM', PROJECTS, ARGV[1])
  return {redis.call('HDEL', POLICIES, ARGV[1]) - 1}
end
redis.call('HSET', POLICIES, ARGV[1], ARGV[2])
redis.call('ZADD', PROJECTS, 0, ARGV[1])
return {0}
