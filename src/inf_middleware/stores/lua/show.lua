-- Shows how a group stands; changes nothing.
--
-- KEYS[1]   its state
--
-- Returns   requests in progress, lost leases that are still remembered, and for each window:
--           metric, length, sum, time until it is empty

local state = enter(KEYS[1], clock())
local reply = { state.running, state.n - state.running }
for _, window in ipairs(state.windows) do
  reply[#reply + 1] = window.metric
  reply[#reply + 1] = window.length
  reply[#reply + 1] = window.total
  reply[#reply + 1] = reset(window, state.now)
end
return reply
