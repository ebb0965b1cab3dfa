-- Lengthens leases that are still held, with the tokens used so far. A lost one is not taken back.
--
-- keys[i]   the state of group i; all of one account
-- given     length of a lease 8, and for each call: call 8, tokens used so far 8
--
-- Returns   a sign for each call: 1 where it is held in every group, 0 where it was lost in one

local function renew(keys, now, given, at)
  local calls, reply, lease = {}, {}, nil
  lease, at = read('<I8', given, at)
  while at <= #given do
    local call, told
    call, told, at = read('<c8I8', given, at)
    calls[#calls + 1] = { call, told }
    reply[#reply + 1] = 1
  end
  for _, key in ipairs(keys) do
    local state = enter(key, now)
    for c, one in ipairs(calls) do
      local call, told = one[1], one[2]
      local place = find_lease(state, call)
      local is_lost = 1
      if place then
        local _, lost, _, admitted, reserved, taken, used, note = lease_at(state, place)
        is_lost = lost
        if lost == 0 then
          if told > reserved then
            correct(state, note, admitted, told - reserved, taken)
            reserved = told
          end
          local ends = state.now + lease
          used = max(used, told)
          local renewed = pack_lease(call, 0, ends, admitted, reserved, taken, used, note)
          put_lease(state, place, renewed)
        end
      end
      if is_lost == 1 then reply[c] = 0 end
    end
    -- What is not ours is replaced at an admission, which tells of it.
    if not state.damaged then save(key, state, lease) end
  end
  return table.concat(reply, ',')
end
