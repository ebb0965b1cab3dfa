-- Shows how a group stands; changes nothing.
--
-- keys[1]   its state
--
-- Returns   slots taken, lost leases that are still remembered, and for each window:
--           metric, length, sum, time until it is empty

local function show(keys, now)
  local state = enter(keys[1], now)
  local reply = { format('%d,%d', slots_taken(state), state.n - state.running) }
  for _, window in ipairs(state.windows) do
    if window.metric ~= NOTE then
      local left = reset(window, state.now)
      reply[#reply + 1] = format('%d,%d,%d,%d', window.metric, window.length, window.total, left)
    end
  end
  return table.concat(reply, ',')
end
