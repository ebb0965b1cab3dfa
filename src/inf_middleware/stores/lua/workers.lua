-- Tells that a process lives, and counts those that do.
--
-- KEYS[1]   the processes of a deployment, each with the moment it was last seen
-- ARGV[1]   this process
-- ARGV[2]   length of a lease, microseconds: who was not seen for one is not counted

local lease, now = tonumber(ARGV[2]), clock()
if not on_ours('ZADD', KEYS[1], now, ARGV[1]) then
  redis.call('DEL', KEYS[1]) -- not ours: those that live tell it again
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - lease)
redis.call('PEXPIRE', KEYS[1], floor(lease / 1000) + 1000)
return redis.call('ZCARD', KEYS[1])
