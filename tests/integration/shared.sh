#!/usr/bin/env bash
# Clients that die while they hold shared memory, clients with it and without at the same time, and
# what is left in the service of either: no descriptor, no mapping, no folder.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
clients=100

# used PID: how many descriptors it has, and how many regions are mapped.
used() {
    echo "$(find "/proc/$1/fd" -mindepth 1 | wc -l) $(grep -c 'memfd:mla-region' "/proc/$1/maps")"
}

# settled PID WHAT: waits until it uses as much as before.
settled() {
    local deadline=$((SECONDS + 20))
    until [[ $(used "$1") == "${before[$1]}" ]]; do
        ((SECONDS < deadline)) || mla_fail 1 "$2 has $(used "$1"), before it had ${before[$1]}"
        sleep 0.1
    done
}

mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint "ipc://$dir/clients"
read -r coordinator < <(mla_pids '^[^ ]*/mla-coordinator') || mla_fail 1 "no coordinator"
mapfile -t ranks < <(mla_pids '^[^ ]*/mla-worker')
soak() {
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" "$@"
}

# The first clients make what stays: pools, queues.
soak --runs 100 >"$dir/soak.out"
grep -q 'payloads: shared memory' "$dir/soak.out" || mla_fail 1 "nothing is shared"
declare -A before
for pid in "$coordinator" "${ranks[@]}"; do
    before[$pid]=$(used "$pid")
    [[ ${before[$pid]} == *' 0' ]] || mla_fail 1 "process $pid still has a region"
done

for ((i = 0; i < clients; i++)); do
    soak --runs 3 >/dev/null
done
for pid in "${!before[@]}"; do
    settled "$pid" "after $clients clients, process $pid"
done

# Killed with RUNs in flight: first one of them while others go on, then all of them.
for ((i = 0; i < 10; i++)); do
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 1000000 --in-flight 8 \
        >"$dir/soak-$i.log" 2>&1 &
    victims[i]=$!
done
"$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 1000000 --in-flight 8 --payload inline \
    >"$dir/soak-inline.log" 2>&1 &
victims+=($!)
deadline=$((SECONDS + 20))
until [[ $(used "${ranks[0]}") == *' 10' ]]; do
    ((SECONDS < deadline)) || mla_fail 1 "10 clients, and rank 0 has $(used "${ranks[0]}")"
    sleep 0.1
done
sleep 0.3
for pid in "${victims[@]}"; do
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null || true
done
for pid in "${!before[@]}"; do
    settled "$pid" "after clients that were killed, process $pid"
done

# A golden case in both ways at once.
"$mla_bin/mla-check" "$case_dir" --endpoint "$mla_endpoint" >"$dir/shared.log" 2>&1 &
first=$!
"$mla_bin/mla-check" "$case_dir" --endpoint "$mla_endpoint" --payload inline \
    >"$dir/inline.log" 2>&1 &
second=$!
wait "$first" || mla_fail 1 "mla-check with shared memory failed"
wait "$second" || mla_fail 1 "mla-check without shared memory failed"
grep -q '^payloads: shared memory' "$dir/shared.log" || mla_fail 1 "nothing was shared"
grep -q '^payloads: inline' "$dir/inline.log" || mla_fail 1 "something was shared"
grep -q 'there are other clients' "$dir/shared.log" "$dir/inline.log" ||
    mla_fail 1 "the clients were not there at the same time"
soak --runs 1000 # and nothing is left of them
mla_stop
[[ -z $(find "$dir" -name 'mla-regions.*') ]] || mla_fail 1 "a folder for regions was left"
mla_nothing_left
