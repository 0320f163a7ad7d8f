local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all, out = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local till, body = all[i + 1]:match('^(%d+) (.*)$')
  local left = (tonumber(till) or 0) - now
  if left > 0 then
    out[#out + 1] = all[i] .. ' ' .. string.format('%.0f', left) .. ' ' .. body
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return out
