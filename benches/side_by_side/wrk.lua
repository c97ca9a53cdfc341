-- What wrk saw, as one line of JSON. With THINK, each connection waits so many milliseconds between requests,
-- more or less, so that all of them together ask at a steady rate.

local think = tonumber(os.getenv("THINK") or "0")

if think > 0 then
    function delay()
        return math.random(1, 2 * think - 1)
    end
end

function done(summary, latency)
    local errors = 0
    for _, count in pairs(summary.errors) do
        errors = errors + count
    end
    io.write(string.format('\n{"requests": %d, "errors": %d, "seconds": %f, "p50_us": %d, "p99_us": %d}\n',
        summary.requests, errors, summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
