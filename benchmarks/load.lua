-- One load generator of wrk: which requests it sends (init, request), what it measured (done).
-- Arguments: mode, seed, file of names to read (one a line).

local count = 0
local seed = "00000000"
local names = {}
local make

-- 16 hexadecimal digits: unique, and valid base64 as they are, for etcd's JSON gateway.
local function unique()
  count = count + 1
  return seed .. string.format("%08x", count)
end

local filler = string.rep("kotobadb", 16)

local function create()
  return '{"op":"create_node","labels":["Bench"],"properties":{"name":"' .. unique() ..
    '","data":"' .. filler .. '"}}'
end

local function put()
  return '{"key":"' .. unique() .. '","value":"' .. filler .. filler:sub(1, 40) .. '"}'
end

local function many(number, one, before, between, after)
  local parts = {}
  for i = 1, number do parts[i] = one() end
  return before .. table.concat(parts, between) .. after
end

local json = {["Content-Type"] = "application/json"}

local modes = {
  ["kotoba-write"] = function()
    return wrk.format("POST", "/v1/operations?forward=true", json, create())
  end,
  ["kotoba-batch"] = function()
    local body = many(32, create, '{"operations":[', ",", "]}")
    return wrk.format("POST", "/v1/operations/batch", json, body)
  end,
  ["kotoba-read"] = function()
    return wrk.format("GET", "/v1/nodes/" .. names[math.random(#names)])
  end,
  ["etcd-write"] = function()
    return wrk.format("POST", "/v3/kv/put", json, put())
  end,
  ["etcd-batch"] = function()
    local body = many(32, put, '{"success":[{"requestPut":', '},{"requestPut":', "}]}")
    return wrk.format("POST", "/v3/kv/txn", json, body)
  end,
  ["etcd-read"] = function()
    return wrk.format("POST", "/v3/kv/range", json, '{"key":"' .. names[math.random(#names)] .. '"}')
  end,
}

function init(args)
  make = assert(modes[args[1]], "unknown mode")
  seed = args[2]
  math.randomseed(tonumber(seed, 16))
  if args[3] then
    for line in io.lines(args[3]) do names[#names + 1] = line end
  end
end

function request()
  return make()
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("@total %d %d %d %d\n", summary.requests, summary.duration,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
  for i = 1, #latency do
    local value, times = latency(i)
    io.write(string.format("@latency %d %d\n", value, times))
  end
end
