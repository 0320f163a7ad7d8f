local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ttl = tonumber(ARGV[2])
if ttl <= 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
elseif ttl > 86400000 or redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 or redis.call('HLEN', KEYS[1]) < 1000 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s', now + ttl, ARGV[3]))
  if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
end
pcall(redis.call, 'PUBLISH', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
