-- Ends all leases of a group now, each with what it is known to have used.
--
-- keys[1]   its state
-- given     length of a lease 8
--
-- Returns   how many were held

local function release(keys, now, given, at)
  local state = enter(keys[1], now)
  local held = state.running
  for i = 0, state.n - 1 do
    local call, is_lost, _, admitted, reserved, taken, used, note = lease_at(state, i)
    if is_lost == 0 then
      local ended = pack_lease(call, 0, state.now, admitted, reserved, taken, used, note)
      put_lease(state, i, ended)
    end
  end
  end_leases(state)
  save(keys[1], state, (read('<I8', given, at)))
  return format('%d', held)
end
