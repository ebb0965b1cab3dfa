-- A Redis server as the scripts see one: its keys, the time, and the library `struct`.
-- Numbers are doubles, as in Redis' own Lua 5.1.

local floor, byte, char = math.floor, string.byte, string.char

-- struct: little endian unsigned integers `I<n>` and texts `c<n>`, which is all that is used.
local layouts = {}
local function layout_of(format)
  local layout = layouts[format]
  if not layout then
    layout = {}
    for kind, size in string.gmatch(format, '([cI])(%d+)') do
      layout[#layout + 1] = { kind == 'c', tonumber(size) }
    end
    layouts[format] = layout
  end
  return layout
end

struct = {}

function struct.pack(format, ...)
  local layout, values, bytes = layout_of(format), { ... }, {}
  for i = 1, #layout do
    local value, size = values[i], layout[i][2]
    if layout[i][1] then
      bytes[#bytes + 1] = string.sub(value, 1, size)
    else
      for _ = 1, size do
        bytes[#bytes + 1] = char(value % 256)
        value = floor(value / 256)
      end
    end
  end
  return table.concat(bytes)
end

function struct.unpack(format, text, at)
  local layout, values = layout_of(format), {}
  at = at or 1
  for i = 1, #layout do
    local size = layout[i][2]
    if layout[i][1] then
      values[i] = string.sub(text, at, at + size - 1)
    else
      local value = 0
      for place = at + size - 1, at, -1 do value = value * 256 + byte(text, place) end
      values[i] = value
    end
    at = at + size
  end
  values[#values + 1] = at
  return unpack(values)
end

-- The server: keys are texts or sorted sets; `ends` says until when they live, in milliseconds.
local now_us, keys, ends = 0, {}, {}

local function get(key)
  if ends[key] and ends[key] <= floor(now_us / 1000) then keys[key], ends[key] = nil, nil end
  return keys[key]
end

local commands = {}
function commands.TIME() return { tostring(floor(now_us / 1000000)), tostring(now_us % 1000000) } end
function commands.GET(key) return get(key) or false end
function commands.SET(key, text, px, ms)
  assert(px == 'PX')
  keys[key], ends[key] = text, floor(now_us / 1000) + tonumber(ms)
end
function commands.DEL(key) keys[key], ends[key] = nil, nil end
function commands.ZADD(key, score, member)
  local set = {}
  for name, had in pairs(get(key) or {}) do set[name] = had end
  set[member] = tonumber(score)
  keys[key] = set
  return 1
end
function commands.ZREMRANGEBYSCORE(key, least, most)
  local from, to = tonumber(least) or -math.huge, tonumber(most) or math.huge
  local set = {}
  for name, score in pairs(get(key) or {}) do
    if score < from or score > to then set[name] = score end
  end
  keys[key] = set
end
function commands.PEXPIRE(key, ms) ends[key] = floor(now_us / 1000) + tonumber(ms) end
function commands.ZCARD(key)
  local count = 0
  for _ in pairs(get(key) or {}) do count = count + 1 end
  return count
end

redis = {}
function redis.call(name, ...) return commands[name](...) end
redis.pcall = redis.call -- no key holds another kind of value here, and nothing else fails

local scripts = {}

local function copy(of)
  local made = {}
  for key, value in pairs(of) do made[key] = value end
  return made
end

return {
  run = function(sha, text, now, KEYS, ARGV)
    local script = scripts[sha]
    if not script then
      script = assert(loadstring('local KEYS, ARGV = ...\n' .. text))
      scripts[sha] = script
    end
    now_us = now
    return script(KEYS, ARGV)
  end,
  save = function() return { copy(keys), copy(ends) } end,
  restore = function(saved) keys, ends = copy(saved[1]), copy(saved[2]) end,
}
