#!/usr/bin/env bash
# Other servers to be measured beside ours.
#
#   benches/peers.sh install [NAME…]       builds or downloads them from the package registries, below $PEERS_DIR
#   benches/peers.sh start [NAME…]         starts them, each on a port of its own with an empty directory, and prints the
#                                          arguments that tell the suite about them
#   benches/peers.sh stop                  ends what `start` started, and removes its data
#   benches/peers.sh redis [CONNECTIONS…]  appends to Redis streams, every one fsynced, by redis-benchmark
#   benches/peers.sh nginx                 what nginx does with an empty answer and a file of 16 MiB, by wrk
#
#   cargo bench --bench http -- --modes acid $(benches/peers.sh start wal acid-0.3)
#
# Names, and what they are:
#   wal, wal-memory            durable-streams 0.1.5 (crates.io), with --durability wal and memory
#   acid-0.3, memory-0.3       durable-streams-server 0.3.0 (crates.io), in its acid and memory modes
#   node                       @durable-streams/server 0.3.7 (npm), in memory
#   nchan                      nginx with nchan (Debian: nginx libnginx-mod-nchan); for --workloads sse,fan-out only
# Redis is in Debian's redis-server and redis-tools, wrk in wrk.
#
# PEERS_DIR (target/peers) holds programs and data; data should be on the disk that the suite uses. PORT (4700) is the first
# port. SHARDS (the number of cores, rounded down to a power of two) is for acid-0.3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
peers=${PEERS_DIR:-$PWD/target/peers}
run=$peers/run
all=(wal wal-memory acid-0.3 memory-0.3 node)

say() { echo "$*" >&2; }
need() { command -v "$1" >/dev/null || { say "$1 is missing; Debian has it in: $2"; exit 1; }; }

install() {
    case $1 in
    wal | wal-memory) crate durable-streams 0.1.5 ;;
    acid-0.3 | memory-0.3) crate durable-streams-server 0.3.0 ;;
    node)
        need npm nodejs
        npm install --silent --no-save --prefix "$peers/node" @durable-streams/server@0.3.7 >&2
        ;;
    nchan) need nginx 'nginx libnginx-mod-nchan' ;;
    *) say "there is no peer $1"; exit 2 ;;
    esac
}

crate() { # name, version
    [ -d "$peers/$1-$2/bin" ] || cargo install --locked --root "$peers/$1-$2" "$1@$2" >&2
}

# Runs the rest of the line in the background, in an empty directory of its own.
background() { # name, command line
    local name=$1 dir=$run/$1
    shift
    (cd "$dir" && exec "$@" >"$dir/log" 2>&1 </dev/null) &
    echo $! >"$dir/pid"
}

start() { # name, port
    local name=$1 port=$2 dir=$run/$1 program pid
    stop_one "$dir"
    mkdir -p "$dir/data"
    # Some need a descriptor for each stream.
    ulimit -n "$(ulimit -Hn)"
    case $name in
    wal | wal-memory)
        local durability=wal
        [ "$name" = wal ] || durability=memory
        program=$peers/durable-streams-0.1.5/bin/durable-streams-server
        background "$name" "$program" --host 127.0.0.1 --port "$port" --data-dir "$dir/data" --durability $durability
        ;;
    acid-0.3 | memory-0.3)
        local -a settings=(DS_SERVER__BIND_ADDRESS=127.0.0.1:"$port" DS_STORAGE__MODE="${name%-0.3}"
            DS_STORAGE__DATA_DIR="$dir/data" DS_LIMITS__MAX_MEMORY_BYTES=68719476736
            DS_LIMITS__MAX_STREAM_BYTES=68719476736 RUST_LOG=warn DS_OBSERVABILITY__RUST_LOG=warn)
        [ "$name" = memory-0.3 ] || settings+=(DS_STORAGE__ACID_SHARD_COUNT="${SHARDS:-$(shards)}")
        program=$peers/durable-streams-server-0.3.0/bin/durable-streams-server
        background "$name" env "${settings[@]}" "$program"
        ;;
    node)
        background "$name" node --input-type=module -e "
            import { DurableStreamTestServer } from '$peers/node/node_modules/@durable-streams/server/dist/index.js'
            await new DurableStreamTestServer({ host: '127.0.0.1', port: $port }).start()"
        ;;
    nchan)
        nchan_configuration "$port" >"$dir/nginx.conf"
        background "$name" nginx -p "$dir" -c "$dir/nginx.conf" -e "$dir/log"
        ;;
    *) say "there is no peer $name"; exit 2 ;;
    esac
    pid=$(<"$dir/pid")
    until curl -s -o /dev/null "http://127.0.0.1:$port/"; do
        kill -0 "$pid" 2>/dev/null || { say "$name does not start:" && cat "$dir/log" >&2; exit 1; }
        sleep 0.1
    done
    # nginx serves from a child of the process that was started.
    [ "$name" != nchan ] || pid=$(<"/proc/$pid/task/$pid/children")
    echo "--peer $name=http://127.0.0.1:$port --peer-pid $name=${pid%% *}"
}

shards() {
    local cores count=1
    cores=$(nproc)
    while [ $((count * 2)) -le "$cores" ]; do count=$((count * 2)); done
    echo $count
}

stop_all() {
    local dir
    for dir in "$run"/*/; do stop_one "${dir%/}"; done
}

stop_one() { # directory
    [ -f "$1/pid" ] && kill "$(<"$1/pid")" 2>/dev/null || true
    rm -rf "$1"
}

# A channel under the paths of streams: PUT makes it, POST publishes, GET subscribes.
nchan_configuration() { # port
    local module=${NCHAN_MODULE:-/usr/lib/nginx/modules/ngx_nchan_module.so}
    cat <<CONF
daemon off;
worker_processes 1;
pid nginx.pid;
load_module $module;
events { worker_connections 65536; }
http {
    access_log off;
    client_body_temp_path body;
    keepalive_requests 1000000000;
    nchan_shared_memory_size 256M;
    nchan_message_buffer_length 100000;
    server {
        listen 127.0.0.1:$1 backlog=4096;
        location = / { return 204; }
        location /v1/stream/ {
            if (\$request_method = GET) { rewrite ^/v1/stream/(.+)\$ /subscribe/\$1 last; }
            rewrite ^/v1/stream/(.+)\$ /publish/\$1 last;
        }
        location ~ ^/subscribe/(.+)\$ {
            internal;
            nchan_channel_id \$1;
            nchan_subscriber eventsource;
            nchan_subscriber_first_message oldest;
        }
        location ~ ^/publish/(.+)\$ {
            internal;
            nchan_channel_id \$1;
            nchan_publisher http;
        }
    }
}
CONF
}

redis() { # connections…
    need redis-server redis-server
    need redis-benchmark redis-tools
    local dir=$run/redis port=${PORT:-4700} connections payload
    stop_one "$dir"
    mkdir -p "$dir"
    background redis redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --save '' --appendonly yes --appendfsync always
    until redis-cli -p "$port" ping >/dev/null 2>&1; do sleep 0.1; done
    payload=$(printf 'x%.0s' {1..100})
    for connections in "${@:-64}"; do
        echo "XADD, appendfsync always, 100 bytes, $connections connections:"
        redis-benchmark -p "$port" -c "$connections" -n "${REQUESTS:-200000}" -r "$connections" --csv \
            XADD bench-__rand_int__ '*' v "$payload" | cut -d, -f2-
    done
    stop_one "$dir"
}

nginx_rows() {
    need nginx nginx
    need wrk wrk
    local dir=$run/nginx port=${PORT:-4700}
    stop_one "$dir"
    mkdir -p "$dir"
    head -c 16M /dev/zero >"$dir/16MiB"
    cat >"$dir/nginx.conf" <<CONF
daemon off;
worker_processes auto;
pid nginx.pid;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path body;
    sendfile on;
    keepalive_requests 1000000000;
    server {
        listen 127.0.0.1:$port reuseport;
        location = /empty { return 204; }
        location = /16MiB { root $dir; }
    }
}
CONF
    background nginx nginx -p "$dir" -c "$dir/nginx.conf" -e "$dir/log"
    until curl -s -o /dev/null "http://127.0.0.1:$port/empty"; do sleep 0.1; done
    echo "empty answer, 64 connections:"
    wrk -t1 -c64 -d"${SECS:-5}s" --latency "http://127.0.0.1:$port/empty"
    echo "file of 16 MiB, 8 connections:"
    wrk -t1 -c8 -d"${SECS:-5}s" "http://127.0.0.1:$port/16MiB"
    stop_one "$dir"
}

command=${1:-}
shift || true
case $command in
install) for name in "${@:-${all[@]}}"; do install "$name"; done ;;
start)
    # Whatever still listens on one of the ports would be taken for the new server.
    stop_all
    ulimit -n "$(ulimit -H -n)"
    port=${PORT:-4700}
    for name in "${@:-${all[@]}}"; do
        start "$name" $port
        port=$((port + 1))
    done
    ;;
stop) stop_all ;;
redis) redis "$@" ;;
nginx) nginx_rows ;;
*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
