-- KEYS: meta
-- ARGV: shards, format, epoch. Writes them at the first start and after a loss
-- of data; returns the stored values. The epoch identifies the data set. What is
-- there is read without a write, which a server with full memory would refuse.
local v = redis.call('HMGET', META, 'shards', 'format', 'epoch')
for i, name in ipairs({'shards', 'format', 'epoch'}) do
  if not v[i] then
    redis.call('HSET', META, name, ARGV[i])
    v[i] = ARGV[i]
  end
end
return v
