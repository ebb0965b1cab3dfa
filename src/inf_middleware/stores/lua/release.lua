-- Ends all leases of a group now, each with what it is known to have used.
--
-- KEYS[1]   its state
-- ARGV[1]   length of a lease, microseconds
--
-- Returns   how many were held

local state = enter(KEYS[1], clock())
local held = state.running
for i = 0, state.n - 1 do
  local call, is_lost, ends, admitted, reserved, taken, used = lease_at(state, i)
  if is_lost == 0 then
    put_lease(state, i, pack(LEASE, call, 0, state.now, admitted, reserved, taken, used))
  end
end
end_leases(state)
save(KEYS[1], state, tonumber(ARGV[1]))
return held
