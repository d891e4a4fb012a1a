-- ARGV: prefix, group. A new group starts at what is appended from now on.
redis.call('HSETNX', P .. 'groups', ARGV[2], int(now_ms() - 1) .. '-18446744073709551615')
return {0}
