-- KEYS: groups
-- ARGV: group. Registers the group where it is new, or where a server has lost
-- it with its data: it then starts at the oldest entry kept, since the sweeper
-- must wait for it, and an entry twice is harmless.
-- Returns {0, the cursor that the group has acknowledged}.
redis.call('HSETNX', GROUPS, ARGV[1], '0-0')
return {0, redis.call('HGET', GROUPS, ARGV[1])}
