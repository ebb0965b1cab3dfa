-- Takes a slot, a request and a reservation of tokens in every group, or nothing in any.
--
-- KEYS[i]   the state of group i; all of one account
-- ARGV[1]   the call, 8 bytes
-- ARGV[2]   length of a lease, microseconds
-- ARGV[3]   tokens to reserve
-- ARGV[4]   1: enforce; 0: take in any case
-- ARGV[5..] for each group: its concurrency (0: not limited), its number of rates, and for each
--           rate: metric (1 requests, 2 tokens), limit, length of its window in microseconds
--
-- Returns   1 admitted, 0 refused, 2 admitted though it would have been refused; then for each
--           group: requests in progress, 1 where that is full; and for each rate: sum, time until
--           it is empty, time until this request would fit. Where it was taken, as it is after.
--           Last: which group's key held what is not ours, and was replaced; 0 where none did.

local call, lease, tokens = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local enforce = ARGV[4] == '1'
local now = clock()

local groups, fits, has, at = {}, true, false, 5
for i, key in ipairs(KEYS) do
  local state = enter(key, now)
  local group = { state = state, rates = {} }
  group.concurrency = tonumber(ARGV[at])
  group.is_full = group.concurrency > 0 and state.running >= group.concurrency
  if group.is_full then fits = false end
  local rates = tonumber(ARGV[at + 1])
  at = at + 2
  for r = 1, rates do
    local metric, limit = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    local window = window_of(state, metric, tonumber(ARGV[at + 2]))
    at = at + 3
    local asked = metric == TOKENS and tokens or 1
    if window.total + asked > limit then fits = false end
    group.rates[r] = { window = window, asked = asked, limit = limit }
  end
  -- Asked again for what it has (a retry after a lost answer), a call takes nothing.
  if find_lease(state, call) then has = true end
  groups[i] = group
end

local takes = not has and (fits or not enforce)
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
    state.leases = state.leases
      .. pack(LEASE, call, 0, state.now + lease, state.now, tokens, tokens, 0)
    state.n = state.n + 1
    state.running = state.running + 1
    local ends = state.now + lease
    state.earliest = state.n == 1 and ends or min(state.earliest, ends)
    if state.damaged then replaced = i end
    save(KEYS[i], state, lease)
  end
  reply[#reply + 1] = state.running
  reply[#reply + 1] = is_full and 1 or 0
  for r, rate in ipairs(group.rates) do
    reply[#reply + 1] = rate.window.total
    reply[#reply + 1] = reset(rate.window, state.now)
    reply[#reply + 1] = waits[r]
  end
end
reply[#reply + 1] = replaced
return reply
