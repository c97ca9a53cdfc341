# Sourced by the scripts beside it: where things are, and processes that end with the script.
#
#   DOORWARD         the doorward binary (or the script's first argument)
#   DOORWARD_CACHE   where downloads and builds are kept, target/interop by default

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${DOORWARD_CACHE:-$here/../../target/interop}
mkdir -p "$cache"
cache=$(cd -- "$cache" && pwd)

doorward=${1:-${DOORWARD:-$here/../../target/debug/doorward}}
[[ -x $doorward ]] || { echo "no doorward binary at $doorward: give its path" >&2; exit 2; }
doorward=$(realpath -- "$doorward")

dir=$(mktemp -d)
# By name: the processes that still run.
declare -A running=()

step() { echo "ok   $1: $2"; }
fail() {
    echo "FAIL $1" >&2
    local log
    for log in "$dir"/*.log; do
        [[ -f $log ]] || continue
        tail -n 15 "$log" | sed "s|^|     $(basename "$log" .log): |" >&2
    done
    exit 1
}

cleanup() {
    local pid
    for pid in "${running[@]}"; do
        # A suspended one would not notice.
        kill -KILL "$pid" 2>/dev/null || true
    done
    for pid in "${running[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf -- "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# start NAME COMMAND...: in the background, its words in NAME.log.
start() {
    local name=$1
    shift
    "$@" >>"$dir/$name.log" 2>&1 </dev/null &
    running[$name]=$!
}

# finish NAME [SIGNAL]: ends it and waits for that.
finish() {
    local pid=${running[$1]} status=0
    kill "-${2:-TERM}" "$pid"
    wait "$pid" 2>/dev/null || status=$?
    unset "running[$1]"
    [[ ${2:-TERM} == KILL || $status == 0 ]] || fail "$1 ended with $status"
}

# await SECONDS WHAT COMMAND...: tries the command until it holds; `took` says how long it was, in
# milliseconds.
await() {
    local limit=$1 what=$2 name began=${EPOCHREALTIME/./}
    shift 2
    until "$@"; do
        for name in "${!running[@]}"; do
            kill -0 "${running[$name]}" 2>/dev/null || fail "$what: $name has ended"
        done
        took=$(((${EPOCHREALTIME/./} - began) / 1000))
        ((took < limit * 1000)) || fail "not within $limit s: $what"
        sleep 0.05
    done
    took=$(((${EPOCHREALTIME/./} - began) / 1000))
}

# ports NAME...: sets each variable to a port that nobody listens on, below those that the kernel gives to
# whoever connects.
ports() {
    local -a free
    read -ra free < <(python3 - $# <<'PY'
import random, socket, sys
taken = []
while len(taken) < int(sys.argv[1]):
    probe = socket.socket()
    try:
        probe.bind(("127.0.0.1", random.randrange(15000, 32000)))
        taken.append(probe)
    except OSError:
        pass
print(*(probe.getsockname()[1] for probe in taken))
PY
    )
    local name
    for name; do
        printf -v "$name" %s "${free[0]}"
        free=("${free[@]:1}")
    done
}

# go_build MODULE PACKAGE...: builds the packages into the cache, if MODULE does not say what it said when that
# was last done.
go_build() {
    local module=$here/$1 built=$cache/bin/$1.sum
    shift
    if ! cmp -s "$module/go.sum" "$built"; then
        mkdir -p "$cache/bin"
        (cd -- "$module" && go build -mod=readonly -buildvcs=false -trimpath -ldflags='-s -w' -o "$cache/bin/" "$@")
        cp -- "$module/go.sum" "$built"
    fi
}

listens() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# program WORKLOAD [BINARY]: the binary under a path of the workload's own, which is what tells it from the
# others to whoever attests.
program() {
    local binary=${2:-$doorward} path
    path=$dir/programs/$1/$(basename "$binary")
    if [[ ! -e $path ]]; then
        mkdir -p "$(dirname "$path")"
        ln "$binary" "$path" 2>/dev/null || cp "$binary" "$path"
    fi
    echo "$path"
}

# start_app PORT: a plain application that tells who it was told is calling.
start_app() {
    start app python3 "$here/app.py" "$1"
    await 10 "the application listens" listens "$1"
}

# start_sidecar WORKLOAD METRICS_PORT <CONFIGURATION: `doorward run`, ready. Metrics, audit and log are
# added.
start_sidecar() {
    local workload=$1 metrics=$2
    {
        cat
        echo "metrics: { listen: '127.0.0.1:$metrics' }"
        echo "audit: { path: '$dir/$workload.jsonl' }"
        echo "workers: 2"
    } >"$dir/$workload.yaml"
    start "$workload" "$(program "$workload")" run --config "$dir/$workload.yaml"
    await 20 "$workload is ready" ready "$metrics"
}

# at PORT|ADDRESS:PORT: on this host, unless it says another.
at() { [[ $1 == *:* ]] && echo "$1" || echo "127.0.0.1:$1"; }

ready() { [[ $(status "http://$(at "$1")/ready") == 200 ]]; }

# status ARGUMENT...: what curl with these arguments is answered; 000 if nothing.
status() {
    curl --noproxy '*' --silent --max-time 10 --output /dev/null --write-out '%{http_code}' "$@" || true
}

# body ARGUMENT...: the body of the answer.
body() { curl --noproxy '*' --silent --max-time 10 "$@" || true; }

# expect STATUS WHAT ARGUMENT...: asks once.
expect() {
    local expected=$1 what=$2 answered
    shift 2
    answered=$(status "$@")
    [[ $answered == "$expected" ]] || fail "$what: answered $answered, not $expected"
}

# metric PORT FAMILY: the sum of its samples.
metric() {
    body "http://$(at "$1")/metrics" |
        awk -v name="$2" '$1 == name || index($1, name "{") == 1 { sum += $2 } END { printf "%d\n", sum }'
}

# metric_above PORT FAMILY NUMBER
metric_above() { (($(metric "$1" "$2") > $3)); }

# start_load NAME URL [kept|fresh [OPTION...]]: four clients ask on and on, on connections they keep or on fresh
# ones. The options are those of load.py.
start_load() {
    start "$1" python3 "$here/load.py" "$2" "${3:-kept}" "${@:4}"
    await 20 "$1 is under way" grep -qs asking "$dir/$1.log"
}

# end_load NAME: ends it and fails if a request has failed; `asked` says how many there were.
end_load() {
    finish "$1"
    local failed
    read -r asked failed < <(tail -n 1 "$dir/$1.log")
    ((failed == 0 && asked > 0)) || fail "$1: $failed of $asked requests failed"
}

# grant_reading WORKLOAD...: a policy directory in which these may read at the service `invoices`.
grant_reading() {
    local workload
    mkdir -p "$dir/policy"
    for workload; do
        cat <<CEDAR
@id("$workload-reads")
@owner("payments@example.org")
@purpose("A test")
@expires("2099-01-01")
permit (
  principal == Workload::"spiffe://example.org/$workload",
  action in Action::"read",
  resource == Service::"invoices"
);
CEDAR
    done >"$dir/policy/invoices.cedar"
}
