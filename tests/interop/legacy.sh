#!/usr/bin/env bash
# Servers and clients that know nothing of Doorward, through two sidecars that intercept:
#   bash tests/interop/legacy.sh [path of doorward]
#
# First the example (examples/legacy/run), then PostgreSQL, MariaDB (whose server speaks first) and Redis: who may
# reach them, over IPv4 and IPv6, that a rotation ends no session, and that a grant taken away ends its own.
#
# Uses Debian's postgresql, mariadb and redis, unpacked in the cache, and as root Linux's namespaces: networks,
# processes and files of its own, of which nothing is left. Says SKIPPED where they are not to be had.
set -euo pipefail

inside=${2:-}
if [[ $inside == inside ]]; then
    mount -t tmpfs -o mode=1777 tmpfs /run
    # PostgreSQL keeps files there.
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    export TMPDIR=/run
fi
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"
# shellcheck source=tests/interop/debian.sh
source "$here/debian.sh"

packages=(postgresql mariadb-server-core mariadb-client-core redis-server)
if [[ $inside != inside ]]; then
    skipped() {
        echo "SKIPPED: no application is intercepted: $1"
        exit 0
    }
    [[ $(id -u) == 0 ]] || skipped "only root makes networks that several users use"
    for program in ip nft unshare setpriv; do
        command -v "$program" >/dev/null || skipped "no \`$program\`: apt install iproute2 nftables util-linux"
    done
    [[ -e /proc/net/if_inet6 ]] || skipped "this kernel has no IPv6"
    alone=(unshare --net --mount --ipc --pid --fork --kill-child --mount-proc)
    "${alone[@]}" sh -ec 'mount -t tmpfs tmpfs /run; ip link add name a type veth peer name b; nft add table inet probe' \
        >"$dir/probe" 2>&1 || skipped "$(tr '\n' ' ' <"$dir/probe")"
    for package in "${packages[@]}"; do unpack "$package"; done
    setpriv --pdeathsig KILL "${alone[@]}" bash "$here/legacy.sh" "$doorward" inside &
    running[inside]=$!
    wait "$!"
    exit
fi

# Nobody, whom the applications run as, may not look into your home.
mount --bind "$cache/debian" /mnt
chmod 0755 "$dir"
for package in "${packages[@]}"; do PATH=/mnt/$package/usr/bin:/mnt/$package/usr/sbin:$PATH; done
# Where it is installed, that is what is unpacked of it.
for bin in {,/mnt/postgresql}/usr/lib/postgresql/*/bin; do
    [[ ! -e $bin ]] || export POSTGRES_BIN=$bin
done
PATH=$POSTGRES_BIN:$PATH
LD_LIBRARY_PATH=$(find "${packages[@]/#//mnt/}" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
export PATH LD_LIBRARY_PATH

"$here/../../examples/legacy/run" "$doorward" >"$dir/run.log" 2>&1 || fail "examples/legacy/run"
step example "$(grep -c '^  ok ' "$dir/run.log") steps of examples/legacy/run hold"
touch /run/binary
mount --bind "$doorward" /run/binary
doorward=/run/binary

# Three hosts on one network.
declare -A user=([server]=2101 [client]=2102 [other]=2103) address=([server]=2 [client]=3 [other]=4)
nobody=65534
on=$dir/on
cat >"$on" <<'SH'
#!/bin/sh
# HOST USER COMMAND...: there, as that user, by number, with the capability $CAPABILITY if it is set, and no other.
host=$1 user=$2 only=-all${CAPABILITY:+,+$CAPABILITY}
shift 2
exec ip netns exec "$host" setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs \
    --bounding-set="$only" --inh-caps="$only" --ambient-caps="$only" "$@"
SH
chmod +x "$on"
ip link set lo up
ip link add name lan type bridge mcast_snooping 0
ip address add 10.77.0.1/24 dev lan
ip address add fd77::1/64 dev lan nodad
ip link set lan up
for host in "${!user[@]}"; do
    ip netns add "$host"
    ip link add name "$host" type veth peer name eth0 netns "$host"
    ip link set "$host" master lan up
    ip -netns "$host" link set lo up
    ip -netns "$host" address add "10.77.0.${address[$host]}/24" dev eth0
    ip -netns "$host" address add "fd77::${address[$host]}/64" dev eth0 nodad
    ip -netns "$host" link set eth0 up
    install -d -o "${user[$host]}" "$dir/$host"
done
# here_is NAME: a directory of the server NAME.
here_is() { install -d -o "$nobody" "$dir/$1"; }

here_is postgresql
"$on" server "$nobody" initdb --pgdata "$dir/postgresql/data" --username reports --auth trust >"$dir/initdb.log" 2>&1 ||
    fail "initdb"
echo 'host all all all trust' >>"$dir/postgresql/data/pg_hba.conf"
start postgresql "$on" server "$nobody" postgres -D "$dir/postgresql/data" -c listen_addresses='*' \
    -c unix_socket_directories="$dir/postgresql"

here_is mariadb
share=/mnt/mariadb-server-core/usr/share/mysql
mariadbd=("$on" server "$nobody" mariadbd --no-defaults --basedir=/mnt/mariadb-server-core/usr --lc-messages-dir="$share"
    --datadir="$dir/mariadb" --socket="$dir/mariadb/socket" --innodb-log-file-size=4M --innodb-buffer-pool-size=16M)
{
    printf '%s;\n' 'create database mysql' 'use mysql' 'set @auth_root_socket = null'
    cat "$share"/mysql_{system_tables,performance_tables,system_tables_data}.sql
    printf '%s;\n' 'flush privileges' "create user reports@'%' identified by 'secret'"
} >"$dir/bootstrap.sql"
"${mariadbd[@]}" --bootstrap <"$dir/bootstrap.sql" >"$dir/bootstrap.log" 2>&1 || fail "mariadbd --bootstrap"
start mariadb "${mariadbd[@]}"

here_is redis
start redis "$on" server "$nobody" redis-server --bind '*' '-::*' --protected-mode no --dir "$dir/redis" --save ''

# The clients, and what they answer to 40 + 2.
declare -A port=([postgresql]=5432 [mariadb]=3306 [redis]=6379)
export PGCONNECT_TIMEOUT=10 MYSQL_PWD=secret
client() {
    case $1 in
        postgresql) echo "psql -XqAt --username reports --dbname postgres --host $2" ;;
        mariadb) echo "mariadb --no-defaults --batch --unbuffered --skip-column-names --user=reports --host=$2" ;;
        redis) echo "redis-cli -h $2" ;;
    esac
}
question() {
    case $1 in
        postgresql | mariadb) echo 'select 40 + 2;' ;;
        redis) echo "eval 'return 40 + 2' 0" ;;
    esac
}
# ask HOST SERVER ADDRESS: what its client is told, in $dir/asked.log.
ask() {
    # shellcheck disable=SC2046
    "$on" "$1" "$nobody" $(client "$2" "$3") <<<"$(question "$2")" >"$dir/asked.log" 2>&1
}
# redis-cli ends with 0 whatever it was told.
told() { grep -cx '\((integer) \)\?42' "$1"; }
answered() { ask "$@" && [[ $(told "$dir/asked.log") == 1 ]]; }
for server in "${!port[@]}"; do
    for to in 10.77.0.2 fd77::2; do await 20 "$server answers at $to" answered client "$server" "$to"; done
done
step applications "PostgreSQL, MariaDB and Redis answer clients on another host, over IPv4 and IPv6"

# Two identities, and a third that no grant is for.
start_issuer "[$(for host in "${!user[@]}"; do
    echo "{ id: /$host, selectors: { uid: ${user[$host]} }, lifetime: 10m, rotate_every: 3s }, "
done)]"
mkdir "$dir/policy"
grant() {
    cat <<CEDAR >"$dir/policy/$1.cedar"
@id("client-reaches-$1")
@owner("ledger@example.org")
@purpose("A test")
@expires("2099-01-01")
permit (principal == Workload::"spiffe://example.org/client", action == Action::"connect", resource == Service::"$1");
CEDAR
}
for server in "${!port[@]}"; do grant "$server"; done

# metrics HOST: where it shows them.
metrics() { echo "10.77.0.${address[$1]}:9901"; }
# intercept HOST <CONFIGURATION: `doorward intercept apply` there, and a sidecar that is ready.
intercept() {
    local host=$1
    {
        cat
        echo "identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }"
        echo "metrics: { listen: '0.0.0.0:9901' }"
        echo "audit: { path: '$dir/$host/audit.jsonl' }"
        echo "workers: 2"
    } >"$dir/$host.yaml"
    # With what deploy/systemd/doorward-intercept.service leaves it.
    ip netns exec "$host" setpriv --no-new-privs --bounding-set=-all,+net_admin \
        "$doorward" intercept apply --config "$dir/$host.yaml" >"$dir/apply.log" 2>&1 ||
        fail "intercept apply on $host"
    start "$host" "$on" "$host" "${user[$host]}" "$doorward" run --config "$dir/$host.yaml"
    await 20 "the sidecar of $host is ready" ready "$(metrics "$host")"
}
CAPABILITY=net_raw intercept server <<YAML
intercept: { user: ${user[server]}, inbound: { port: 15006, ports: [3306, 5432, 6379] } }
inbound:
- { intercept: 3306, service: mariadb, protocol: tcp }
- { intercept: 5432, service: postgresql, protocol: tcp, client_address: kept }
- { intercept: 6379, service: redis, protocol: tcp }
policy: { dir: '$dir/policy' }
YAML
# By address, by network, by port.
for host in client other; do
    intercept "$host" <<YAML
intercept: { user: ${user[$host]}, outbound: { port: 15001, otherwise: deny } }
outbound:
- { intercept: ['10.77.0.2:3306', '[fd77::2]:3306'], peer: spiffe://example.org/server, protocol: tcp }
- { intercept: ['10.77.0.0/24:5432', '[fd77::/64]:5432'], peer: spiffe://example.org/server, protocol: tcp }
- { intercept: '*:6379', peer: spiffe://example.org/server, protocol: tcp }
YAML
done

# audited HOST PATTERN...: whether a record there has all of them.
audited() {
    local lines pattern
    lines=$(cat "$dir/$1/audit.jsonl")
    for pattern in "${@:2}"; do lines=$(grep -F "$pattern" <<<"$lines") || return 1; done
}
denied() { ! answered "$@"; }
# From the network itself, which nothing is intercepted on.
denied_plain() {
    # shellcheck disable=SC2046
    timeout 10 $(client "$1" "$2") <<<"$(question "$1")" >"$dir/asked.log" 2>&1 || true
    [[ $(told "$dir/asked.log") == 0 ]]
}
for server in "${!port[@]}"; do
    for to in 10.77.0.2 fd77::2; do
        answered client "$server" "$to" || fail "$server does not answer at $to: $(cat "$dir/asked.log")"
        denied other "$server" "$to" || fail "$server answers another principal at $to"
        denied_plain "$server" "$to" || fail "$server answers at $to without an identity"
    done
    await 10 "the records of $server" audited server "\"service\":\"$server\"" '"decision":"allow"' \
        'spiffe://example.org/client' "client-reaches-$server"
    await 10 "the records of $server" audited server "\"service\":\"$server\"" '"decision":"deny"' \
        'spiffe://example.org/other' no_grant
    step "$server" "who has a grant gets through, over IPv4 and IPv6; another principal does not, nor does plain TCP"
done
for to in 10.77.0.2 fd77::2; do
    # shellcheck disable=SC2046
    seen=$("$on" client "$nobody" $(client postgresql "$to") --command 'select inet_client_addr()' 2>"$dir/asked.log")
    [[ $seen == "${to%2}3" ]] || fail "PostgreSQL sees its client at $seen"
done
step address "with \`client_address: kept\`, PostgreSQL sees its client's own"

# Sessions that stay: their clients read what they are told to ask from a pipe.
declare -A input=()
session() {
    mkfifo "$dir/$1.in"
    # shellcheck disable=SC2046
    "$on" client "$nobody" $(client "$1" 10.77.0.2) >"$dir/session-$1.log" 2>&1 <"$dir/$1.in" &
    running[session-$1]=$!
    exec {input[$1]}>"$dir/$1.in"
}
# goes_on SERVER TIMES: its session has had so many answers.
goes_on() { (($(told "$dir/session-$1.log") == $2)); }
asks_again() {
    question "$1" >&"${input[$1]}"
    await 10 "the session with $1 goes on" goes_on "$1" "$2"
}
rotations=doorward_identity_rotations_total
for server in "${!port[@]}"; do
    session "$server"
    asks_again "$server" 1
done
for host in server client; do
    before=$(metric "$(metrics "$host")" "$rotations")
    await 30 "rotations on $host" metric_above "$(metrics "$host")" "$rotations" $((before + 1))
done
for server in "${!port[@]}"; do
    asks_again "$server" 2
    answered client "$server" 10.77.0.2 || fail "$server does not answer after a rotation"
done
step rotation "on either side, twice and more: the sessions with the three go on, and new ones are made"

# Only the session that stood on it.
rm "$dir/policy/mariadb.cedar"
await 10 "the session ends with its grant" audited server '"service":"mariadb"' permit_withdrawn
question mariadb >&"${input[mariadb]}"
code=0
wait "${running[session-mariadb]}" || code=$?
unset 'running[session-mariadb]'
[[ $code != 0 ]] || fail "mariadb has not noticed"
denied client mariadb 10.77.0.2 || fail "mariadb answers without a grant"
asks_again postgresql 3
asks_again redis 3
grant mariadb
await 10 "mariadb is back" answered client mariadb 10.77.0.2
step withdrawal "a grant taken away ends the session that stood on it, and no other; given back, it holds again"

for server in postgresql redis; do finish "session-$server" KILL; done
for host in "${!user[@]}"; do
    finish "$host"
    ip netns exec "$host" "$doorward" intercept remove --config "$dir/$host.yaml" >"$dir/remove.log" 2>&1 ||
        fail "intercept remove on $host"
    [[ -z $(ip netns exec "$host" nft list ruleset) ]] || fail "rules are left on $host"
done
for server in "${!port[@]}"; do
    answered other "$server" fd77::2 || fail "$server does not answer as it did"
done
stop_issuer removal
step removal "no rule is left, and the applications are as they were"
