-- Tells that a process lives, and counts those that do.
--
-- keys[1]   the processes of a deployment, each with the moment it was last seen
-- given     length of a lease 8: who was not seen for one is not counted; this process, the rest
--
-- Returns   how many live

local function workers(keys, now, given, at)
  local key, lease = keys[1], nil
  lease, at = read('<I8', given, at)
  local process = sub(given, at)
  if not on_ours('ZADD', key, now, process) then
    redis.call('DEL', key) -- not ours: those that live tell it again
    redis.call('ZADD', key, now, process)
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - lease)
  -- Seen before the clock was set back: those that live tell it again.
  redis.call('ZREMRANGEBYSCORE', key, now + 1, '+inf')
  redis.call('PEXPIRE', key, floor(lease / 1000) + 1000)
  return redis.call('ZCARD', key)
end
