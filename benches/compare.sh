#!/usr/bin/env bash
# Appends against this server and another one in alternating rounds, so that a machine whose speed drifts is fair to both.
#
#   benches/compare.sh OURS PEER
#
# OURS and PEER are command lines that start a server in the foreground on 127.0.0.1:$PORT with data below $DIR. Both
# variables are set anew for each round. Needs wrk and curl. CONNECTIONS, STREAMS, SECS and ROUNDS override 64, 64, 5, 3.
# Prints requests per second, latencies, and CPU microseconds of the server per request: the last one means something
# even where the load generator shares the cores.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
connections=${CONNECTIONS:-64} secs=${SECS:-5} rounds=${ROUNDS:-3}
export STREAMS=${STREAMS:-64}

cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

round() { # name, command line
    DIR=$(mktemp -d) PORT=$((20000 + RANDOM % 20000))
    export DIR PORT
    bash -c "exec $2" >"$DIR.log" 2>&1 &
    local server=$! url=http://127.0.0.1:$PORT
    for _ in $(seq 100); do curl -s -o /dev/null "$url/" && break; sleep 0.1; done
    METHOD=PUT wrk -t1 -c4 -d1s -s "$here/append.lua" "$url" >/dev/null
    local before after out requests
    before=$(cpu_ticks "$server")
    out=$(wrk -t1 -c"$connections" -d"${secs}s" --latency -s "$here/append.lua" "$url")
    after=$(cpu_ticks "$server")
    requests=$(awk '/requests in/ { print $1 }' <<<"$out")
    awk -v name="$1" -v requests="$requests" -v us=$(((after - before) * 10000)) '
        /Requests\/sec/ { rate = $2 } / 50% / { p50 = $2 } / 99% / { p99 = $2 } /Non-2xx/ { bad = $0 }
        END { printf "%s\t%s/s\tp50 %s\tp99 %s\t%.1f us CPU\t%s\n", name, rate, p50, p99, us / requests, bad }' <<<"$out"
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    rm -rf "$DIR" "$DIR.log"
}

for _ in $(seq "$rounds"); do
    round ours "$1"
    round peer "$2"
done
