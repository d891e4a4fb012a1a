-- KEYS: meta
-- ARGV: shards, format, epoch. Writes them at the first start and after a loss
-- of data; returns the stored values. The epoch identifies the data set.
redis.call('HSETNX', META, 'shards', ARGV[1])
redis.call('HSETNX', META, 'format', ARGV[2])
redis.call('HSETNX', META, 'epoch', ARGV[3])
return redis.call('HMGET', META, 'shards', 'format', 'epoch')
