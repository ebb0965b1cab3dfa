-- Puts the tokens really used in the place of a call's reservation, and frees its slot; once.
--
-- KEYS[i]   the state of group i; all of one account
-- ARGV[1]   the call, 8 bytes
-- ARGV[2]   length of a lease, microseconds
-- ARGV[3]   tokens used; -1: the reservation stays as it is
--
-- Returns   1 where it was held, 0 where it was not (any more)

local call, lease, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = clock()

local held = 1
for _, key in ipairs(KEYS) do
  local state = enter(key, now)
  local place = find_lease(state, call)
  if not place then
    held = 0
  else
    local _, is_lost, _, admitted, reserved, taken = lease_at(state, place)
    drop_lease(state, place)
    if is_lost == 1 then
      held = 0
    else
      state.running = state.running - 1
    end
    if tokens >= 0 then correct(state, admitted, tokens - reserved, taken) end
    save(key, state, lease)
  end
end
return held
