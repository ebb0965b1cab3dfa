-- What the steps share: the counters of one group of limits of one account, as one string.
--
--   header   latest moment 7, earliest end of a lease 7, requests in progress 4, number of
--            leases 4, number of windows 1
--   leases   call 8, is lost 1, ends at 7, admitted at 7, reserved 5, taken 5, used 5
--   windows  metric 1 (1 requests, 2 tokens), length 7, created at 7, sum 7, number of slots 1,
--            and for each slot: latest addition 7, amount 5
--
-- Among the windows are notes, of metric 0 and without slots: the length of one tells which windows
-- a lease took tokens from, 2^(place - 1) for each of them, and 2^52 more where it has no slot of
-- this group, though it is in progress. A lease tells the place of its note:
-- twice that is its `is lost` while it is held, and once it is lost what `used` is above `reserved`,
-- which are the same then. So those who know of no notes read a lease as they always did, and theirs,
-- without one, took from all windows of tokens that there were. While there are leases all windows
-- stay, in their places.
--
-- Numbers are unsigned, little endian, so many bytes long; moments and lengths are microseconds by
-- the server's clock. Where that goes back, time stands still for the group, for a minute at most:
-- further back all that it knows of goes with the clock, as if no time had passed. The arithmetic is that of `window.py` and
-- `counters.py`, which say why.

local read, pack = struct.unpack, struct.pack
local floor, min, max, sub, format = math.floor, math.min, math.max, string.sub, string.format

local HEADER, HEADER_BYTES = '<I7I7I4I4I1', 23
local LEASE, LEASE_BYTES = '<c8I1I7I7I5I5I5', 38
local WINDOW, WINDOW_BYTES = '<I1I7I7I7I1', 23
local SLOT, SLOT_BYTES = '<I7I5', 12
local SLOTS = 120
local AMOUNT_MAX = 1099511627775 -- five bytes
local FORGET_US = 300000000
local STEP_US = 60000000 -- whole slots, of most windows
local TOKENS, NOTE = 2, 0
local NOTES_MAX = 127 -- the place of one, twice, is a byte
-- What sums of powers of 2 are exact up to, in a double.
local PLACES_MAX, NO_SLOT = 52, 2 ^ 52

local function new_window(metric, length, now)
  return { metric = metric, length = length, created = now, total = 0, n = 0, slots = '' }
end

-- Runs a command on a key of ours; nothing where that holds a value of another kind.
local function on_ours(name, key, ...)
  local reply = redis.pcall(name, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return nil end
  return redis.call(name, key, ...) -- raises it
end

local function new_state(now)
  return { now = now, earliest = 0, running = 0, n = 0, leases = '', windows = {} }
end

-- Moves all moments back, none beyond the first that there is.
local function go_back(state, by)
  local function before(moment) return max(moment - by, 0) end
  state.now, state.earliest = before(state.now), before(state.earliest)
  local leases = {}
  for i = 1, #state.leases, LEASE_BYTES do
    local call, sign, ends, admitted, reserved, taken, used = read(LEASE, state.leases, i)
    leases[#leases + 1] =
      pack(LEASE, call, sign, before(ends), before(admitted), reserved, taken, used)
  end
  state.leases = table.concat(leases)
  for _, window in ipairs(state.windows) do
    local slots = {}
    for i = 1, #window.slots, SLOT_BYTES do
      local latest, amount = read(SLOT, window.slots, i)
      slots[#slots + 1] = pack(SLOT, before(latest), amount)
    end
    window.created, window.slots = before(window.created), table.concat(slots)
  end
end

-- Reads a text into a state; false where its parts are not all there, or not all of it.
local function parse(state, text)
  if #text < HEADER_BYTES then return false end
  local latest, earliest, running, n, windows = read(HEADER, text)
  state.now = max(state.now, latest)
  state.earliest, state.running, state.n = earliest, running, n
  local at = HEADER_BYTES + 1
  state.leases = sub(text, at, at + n * LEASE_BYTES - 1)
  at = at + n * LEASE_BYTES
  for i = 1, windows do
    if at + WINDOW_BYTES > #text + 1 then return false end
    local metric, length, created, total, count = read(WINDOW, text, at)
    at = at + WINDOW_BYTES
    local window = { metric = metric, length = length, created = created, total = total, n = count }
    window.slots = sub(text, at, at + count * SLOT_BYTES - 1)
    at = at + count * SLOT_BYTES
    state.windows[i] = window
  end
  return at == #text + 1
end

-- What is not ours is as nothing, and `damaged`: the account begins anew, and no other notices.
local function load(key, now)
  local text = on_ours('GET', key)
  local state = new_state(now)
  if not text then
    state.damaged = text == nil
  elseif not parse(state, text) then
    state = new_state(now)
    state.damaged = true
  end
  if state.now - now >= STEP_US then
    go_back(state, floor((state.now - now) / STEP_US) * STEP_US)
    state.went_back = true
  end
  return state
end

-- Writes the state, to expire when nothing in it matters any more.
local function save(key, state, lease)
  local parts, windows, lives = { '' }, 0, 0
  for _, w in ipairs(state.windows) do
    if w.n > 0 or state.n > 0 then
      windows = windows + 1
      parts[#parts + 1] = pack(WINDOW, w.metric, w.length, w.created, w.total, w.n)
      parts[#parts + 1] = w.slots
      if w.metric ~= NOTE then lives = max(lives, w.length) end
    end
  end
  if state.n > 0 then lives = max(lives, lease + FORGET_US) end
  if lives == 0 then
    redis.call('DEL', key)
    return
  end
  parts[1] = pack(HEADER, state.now, state.earliest, state.running, state.n, windows)
    .. state.leases
  redis.call('SET', key, table.concat(parts), 'PX', floor(lives / 1000) + 1000)
end

local function slot_of(window, moment)
  return floor(moment / max(floor(window.length / SLOTS), 1))
end

local function slot_at(window, i) -- counted from 0
  return read(SLOT, window.slots, i * SLOT_BYTES + 1)
end

local function put_slot(window, i, latest, amount)
  window.slots = sub(window.slots, 1, i * SLOT_BYTES)
    .. pack(SLOT, latest, min(amount, AMOUNT_MAX))
    .. sub(window.slots, (i + 1) * SLOT_BYTES + 1)
end

local function leave(window, now)
  local gone, left = now - window.length, 0
  while left < window.n do
    local latest, amount = slot_at(window, left)
    if latest > gone then break end
    window.total = window.total - amount
    left = left + 1
  end
  if left > 0 then
    window.n = window.n - left
    window.slots = sub(window.slots, left * SLOT_BYTES + 1)
  end
end

local function add(window, now, amount)
  amount = min(amount, AMOUNT_MAX)
  if window.n > 0 then
    local latest, had = slot_at(window, window.n - 1)
    if slot_of(window, latest) == slot_of(window, now) then
      amount = min(amount, AMOUNT_MAX - had)
      put_slot(window, window.n - 1, now, had + amount)
      window.total = window.total + amount
      return
    end
  end
  window.slots = window.slots .. pack(SLOT, now, amount)
  window.n = window.n + 1
  window.total = window.total + amount
end

-- To the slot that was added to at `added`, unless it has left: a late refund mints nothing.
local function give_back(window, added, amount)
  if added < window.created then return end
  local wanted = slot_of(window, added)
  local low, high = 0, window.n
  while low < high do
    local middle = floor((low + high) / 2)
    if slot_of(window, (slot_at(window, middle))) < wanted then
      low = middle + 1
    else
      high = middle
    end
  end
  if low == window.n then return end
  local latest, had = slot_at(window, low)
  if slot_of(window, latest) ~= wanted then return end
  amount = min(amount, had)
  put_slot(window, low, latest, had - amount)
  window.total = window.total - amount
end

local function reset(window, now)
  for i = window.n - 1, 0, -1 do
    local latest, amount = slot_at(window, i)
    if amount > 0 then return latest + window.length - now end
  end
  return 0
end

local function wait(window, now, asked, limit)
  local over = window.total + asked - limit
  if over <= 0 then return 0 end
  for i = 0, window.n - 1 do
    local latest, amount = slot_at(window, i)
    over = over - amount
    if over <= 0 then return latest + window.length - now end
  end
  return window.length
end

local function window_of(state, metric, length)
  for place, window in ipairs(state.windows) do
    if window.metric == metric and window.length == length then return window, place end
  end
  local window, place = new_window(metric, length, state.now), #state.windows + 1
  state.windows[place] = window
  return window, place
end

-- The place of the note of windows, `sum` being theirs; 0 where there are too many for one, more
-- than any few levels have: then it is all of them, and a slot.
local function note_of(state, sum, takes_slot)
  if sum >= 2 ^ PLACES_MAX then return 0 end
  if takes_slot == 0 then sum = sum + NO_SLOT end
  local _, place = window_of(state, NOTE, sum)
  return place <= NOTES_MAX and place or 0
end

-- Records tokens beyond a reservation (above 0), or returns unused ones (below 0): no more than
-- were `taken` at admission, and in the windows of a note alone. Returns what is taken then.
local function correct(state, note, admitted, tokens, taken)
  local back = min(-tokens, taken)
  local noted = state.windows[note]
  local left = noted and noted.metric == NOTE and noted.length % NO_SLOT
  for _, window in ipairs(state.windows) do
    if window.metric == TOKENS and (not left or left % 2 == 1) then
      if tokens > 0 then
        add(window, state.now, tokens)
      elseif back > 0 then
        give_back(window, admitted, back)
      end
    end
    if left then left = floor(left / 2) end
  end
  return tokens < 0 and taken - back or taken
end

local function pack_lease(call, is_lost, ends, admitted, reserved, taken, used, note)
  if is_lost == 1 then
    used = reserved + note
  else
    is_lost = 2 * note
  end
  return pack(LEASE, call, is_lost, ends, admitted, reserved, taken, used)
end

local function lease_at(state, i) -- counted from 0
  local call, sign, ends, admitted, reserved, taken, used =
    read(LEASE, state.leases, i * LEASE_BYTES + 1)
  if sign == 1 then
    return call, 1, ends, admitted, reserved, taken, reserved, used - reserved
  end
  return call, 0, ends, admitted, reserved, taken, used, sign / 2
end

local function put_lease(state, i, record)
  state.leases = sub(state.leases, 1, i * LEASE_BYTES)
    .. record
    .. sub(state.leases, (i + 1) * LEASE_BYTES + 1)
end

local function drop_lease(state, i)
  put_lease(state, i, '')
  state.n = state.n - 1
end

local function find_lease(state, call)
  local from = 1
  while true do
    local at = string.find(state.leases, call, from, true)
    if not at then return nil end
    if (at - 1) % LEASE_BYTES == 0 then return (at - 1) / LEASE_BYTES end
    from = at + 1
  end
end

-- Requests in progress that have a slot of this group: mostly all.
local function slots_taken(state)
  local taken, are_all = state.running, true
  for _, window in ipairs(state.windows) do
    if window.metric == NOTE and window.length >= NO_SLOT then are_all = false end
  end
  if are_all then return taken end
  for i = 0, state.n - 1 do
    local _, is_lost, _, _, _, _, _, note = lease_at(state, i)
    local noted = state.windows[note]
    if is_lost == 0 and noted and noted.length >= NO_SLOT then taken = taken - 1 end
  end
  return taken
end

local function end_leases(state)
  local i, earliest = 0, 0
  while i < state.n do
    local call, is_lost, ends, admitted, reserved, taken, used, note = lease_at(state, i)
    if ends <= state.now and is_lost == 1 then
      drop_lease(state, i)
    else
      if ends <= state.now then
        taken = correct(state, note, admitted, used - reserved, taken)
        ends = state.now + FORGET_US
        put_lease(state, i, pack_lease(call, 1, ends, admitted, used, taken, used, note))
        state.running = state.running - 1
      end
      earliest = earliest == 0 and ends or min(earliest, ends)
      i = i + 1
    end
  end
  state.earliest = earliest
end

-- What every step begins with.
local function enter(key, now)
  local state = load(key, now)
  for _, window in ipairs(state.windows) do leave(window, state.now) end
  if state.n > 0 and state.now >= state.earliest then end_leases(state) end
  return state
end
