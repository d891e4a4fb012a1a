-- KEYS: session
-- ARGV: time in ms after which events of the session were lost.
-- Remembers it with the session, the latest few. Returns {0}, {-1} for no session.
local v = redis.call('HMGET', SESSION, 'st', 'gap')
if not v[1] then return {-1} end
local gaps = v[2] or ''
if string.find(' ' .. gaps .. ' ', ' ' .. ARGV[1] .. ' ', 1, true) then return {0} end
gaps = gaps == '' and ARGV[1] or gaps .. ' ' .. ARGV[1]
local _, spaces = string.gsub(gaps, ' ', ' ')
if spaces >= 8 then gaps = string.match(gaps, ' (.*)$') end
redis.call('HSET', SESSION, 'gap', gaps)
return {0}
