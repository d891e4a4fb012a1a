-- ARGV: prefix, group, action, consumer, nonce, ttl.
-- The value is "consumer nonce". Returns {1, acknowledged cursor} when the
-- caller holds the lease after the call, {0} when somebody else does, {-1}
-- when the same consumer has come back under another nonce.
local l = P .. 'lease:' .. ARGV[2]
local mine = ARGV[4] .. ' ' .. ARGV[5]
local held = redis.call('GET', l)
if ARGV[3] == 'release' then
  if held == mine then redis.call('DEL', l) end
  return {0}
end
if ARGV[3] == 'renew' and held ~= mine then
  if held and string.match(held, '^(%S+) ') == ARGV[4] then return {-1} end
  return {0}
end
if ARGV[3] == 'acquire' and held and held ~= mine and string.match(held, '^(%S+) ') ~= ARGV[4] then return {0} end
redis.call('SET', l, mine, 'PX', ARGV[6])
-- A server that lost its data lost the group, too. It comes back at the
-- beginning: the sweeper must wait for it, and an entry twice is harmless.
redis.call('HSETNX', P .. 'groups', ARGV[2], '0-0')
return {1, redis.call('HGET', P .. 'groups', ARGV[2])}
