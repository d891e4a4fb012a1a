-- ARGV: prefix, group. A new group starts behind the last entry there is; with
-- none left in the feed, at now.
local last = redis.call('XREVRANGE', P .. 'feed', '+', '-', 'COUNT', 1)[1]
local at = last and last[1] or (int(now_ms() - 1) .. '-18446744073709551615')
redis.call('HSETNX', P .. 'groups', ARGV[2], at)
return {0}
