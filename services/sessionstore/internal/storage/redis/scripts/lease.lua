-- KEYS: lease
-- ARGV: action, consumer, nonce, ttl.
-- The value is "consumer nonce". Returns {1} when the caller holds the lease
-- after the call, {0} when another consumer does, {-1} when the same consumer
-- has come back under another nonce.
local mine = ARGV[2] .. ' ' .. ARGV[3]
local held = redis.call('GET', LEASE)
if ARGV[1] == 'release' then
  if held == mine then redis.call('DEL', LEASE) end
  return {0}
end
if ARGV[1] == 'renew' and held ~= mine then
  if held and string.match(held, '^(%S+) ') == ARGV[2] then return {-1} end
  return {0}
end
if ARGV[1] == 'acquire' and held and held ~= mine and string.match(held, '^(%S+) ') ~= ARGV[2] then return {0} end
redis.call('SET', LEASE, mine, 'PX', ARGV[4])
return {1}
