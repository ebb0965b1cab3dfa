-- Takes a slot, a request and a reservation of tokens in every group, or nothing in any.
--
-- keys[i]   the state of group i; all of one account
-- given     call 8, length of a lease 8, tokens to reserve 8, enforce 1 (1: yes; 0: take in any
--           case); and for each group: its concurrency 8 (0: not limited), whether a slot of it is
--           taken 1, its number of rates 1, and for each rate: metric 1 (1 requests, 2 tokens),
--           limit 8, length of its window 8
--
-- Returns   1 admitted, 0 refused, 2 admitted though it would have been refused; then for each
--           group: slots taken, 1 where it is full; and for each rate: sum, time until
--           it is empty, time until this request would fit. Where it was taken, as it is after.
--           Last: which group's key held what is not ours, and was replaced; 0 where none did.

local function admit(keys, now, given, at)
  local call, lease, tokens, enforce
  call, lease, tokens, enforce, at = read('<c8I8I8I1', given, at)

  local groups, fits, has = {}, true, false
  for i, key in ipairs(keys) do
    local state = enter(key, now)
    -- `from`: the sum of the windows that it takes tokens from, for their note.
    local group, rates = { state = state, rates = {}, from = 0, slots = slots_taken(state) }, 0
    group.concurrency, group.takes_slot, rates, at = read('<I8I1I1', given, at)
    group.is_full = group.concurrency > 0 and group.slots >= group.concurrency
    if group.is_full then fits = false end
    for r = 1, rates do
      local metric, limit, length
      metric, limit, length, at = read('<I1I8I8', given, at)
      local window, place = window_of(state, metric, length)
      local asked = 1
      if metric == TOKENS then
        asked = tokens
        group.from = group.from + 2 ^ (place - 1)
      end
      if window.total + asked > limit then fits = false end
      group.rates[r] = { window = window, asked = asked, limit = limit }
    end
    -- Asked again for what it has (a retry after a lost answer), a call takes nothing.
    if find_lease(state, call) then has = true end
    groups[i] = group
  end

  local takes = not has and (fits or enforce == 0)
  local verdict = (has or fits) and 1 or takes and 2 or 0

  local reply, replaced = { verdict }, 0
  for i, group in ipairs(groups) do
    local state = group.state
    local is_full = group.is_full and verdict ~= 1
    local waits = {}
    for r, rate in ipairs(group.rates) do
      waits[r] = verdict == 1 and 0 or wait(rate.window, state.now, rate.asked, rate.limit)
      if takes and rate.asked > 0 then add(rate.window, state.now, rate.asked) end
    end
    if takes then
      local ends, note = state.now + lease, note_of(state, group.from, group.takes_slot)
      group.slots = group.slots + group.takes_slot
      state.leases = state.leases
        .. pack_lease(call, 0, ends, state.now, tokens, tokens, 0, note)
      state.n = state.n + 1
      state.running = state.running + 1
      state.earliest = state.n == 1 and ends or min(state.earliest, ends)
      if state.damaged then replaced = i end
    end
    -- Time goes on from when it went back, also for who is refused until then.
    if takes or state.went_back then save(keys[i], state, lease) end
    reply[#reply + 1] = format('%d,%d', group.slots, is_full and 1 or 0)
    for r, rate in ipairs(group.rates) do
      local window = rate.window
      reply[#reply + 1] = format('%d,%d,%d', window.total, reset(window, state.now), waits[r])
    end
  end
  reply[#reply + 1] = replaced
  return table.concat(reply, ',')
end
