-- wrk script: appends of BYTES bytes (default 100), round robin over STREAMS streams (default 64) named bench-0, bench-1, …
-- With METHOD=PUT it creates them instead.
local streams = tonumber(os.getenv("STREAMS") or "64")
local body = string.rep("x", tonumber(os.getenv("BYTES") or "100"))
local method = os.getenv("METHOD") or "POST"
local headers = { ["Content-Type"] = "application/octet-stream" }
local n = 0

function request()
  n = n + 1
  local payload = body
  if method == "PUT" then payload = nil end
  return wrk.format(method, "/v1/stream/bench-" .. (n % streams), headers, payload)
end
