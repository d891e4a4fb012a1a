-- ARGV: prefix, group. A new group starts at the oldest entry kept.
redis.call('HSETNX', P .. 'groups', ARGV[2], '0-0')
return {0}
