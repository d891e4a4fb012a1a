-- ARGV: prefix, shards, format. Writes them at the first start; returns what
-- is there.
redis.call('HSETNX', P .. 'meta', 'shards', ARGV[2])
redis.call('HSETNX', P .. 'meta', 'format', ARGV[3])
return redis.call('HMGET', P .. 'meta', 'shards', 'format')
