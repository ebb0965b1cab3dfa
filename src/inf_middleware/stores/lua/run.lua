-- Runs what was asked together, each step on its own and in order.
--
-- KEYS      those of the first step, then those of the second, and so on
-- ARGV[i]   of step i: which it is 1, its number of keys 1, and what it is given (see there)
--
-- Returns   what each returns, as JSON: a list of numbers for each, which a client reads at once

local steps = { admit, renew, settle, workers, show, release }
local now, used, replies = clock(), 0, {}
for i, given in ipairs(ARGV) do
  local step, count, at = read('<I1I1', given)
  local keys = {}
  for k = 1, count do keys[k] = KEYS[used + k] end
  used = used + count
  replies[i] = steps[step](keys, now, given, at)
end
return '[[' .. table.concat(replies, '],[') .. ']]'
