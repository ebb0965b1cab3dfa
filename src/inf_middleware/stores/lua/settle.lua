-- Puts the tokens really used in the place of a call's reservation, and frees its slot; once.
--
-- keys[i]   the state of group i; all of one account
-- given     call 8, length of a lease 8, tokens used 8, 1 where that is known 1 (0: the reservation
--           stays as it is)
--
-- Returns   1 where it was held, 0 where it was not (any more)

local function settle(keys, now, given, at)
  local call, lease, tokens, is_known = read('<c8I8I8I1', given, at)
  local held = 1
  for _, key in ipairs(keys) do
    local state = enter(key, now)
    local place = find_lease(state, call)
    if not place then
      held = 0
    else
      local _, is_lost, _, admitted, reserved, taken, _, note = lease_at(state, place)
      drop_lease(state, place)
      if is_lost == 1 then
        held = 0
      else
        state.running = state.running - 1
      end
      if is_known == 1 then correct(state, note, admitted, tokens - reserved, taken) end
      save(key, state, lease)
    end
  end
  return held
end
