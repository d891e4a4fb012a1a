-- ARGV: prefix, shards, format, epoch. Writes them at the first start, and when
-- the data is gone; returns what is there. The epoch names the data: another
-- one is other data.
redis.call('HSETNX', P .. 'meta', 'shards', ARGV[2])
redis.call('HSETNX', P .. 'meta', 'format', ARGV[3])
redis.call('HSETNX', P .. 'meta', 'epoch', ARGV[4])
return redis.call('HMGET', P .. 'meta', 'shards', 'format', 'epoch')
