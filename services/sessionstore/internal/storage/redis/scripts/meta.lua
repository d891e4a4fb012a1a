-- KEYS: meta
-- ARGV: shards, format, epoch. Writes them at the first start, and when the data
-- is gone; returns what is there. The epoch names the data: another one is other
-- data.
redis.call('HSETNX', META, 'shards', ARGV[1])
redis.call('HSETNX', META, 'format', ARGV[2])
redis.call('HSETNX', META, 'epoch', ARGV[3])
return redis.call('HMGET', META, 'shards', 'format', 'epoch')
