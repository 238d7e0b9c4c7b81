#!/usr/bin/env bash
# Three hosts: the coordinator on one, four ranks on the others, started by mla-serve over ssh, with
# keys. What a client gets, also while a host is cut off, a daemon or a coordinator killed; what is
# left on any of them at the end.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tests/integration/survivor.sh
source "$(dirname "${BASH_SOURCE[0]}")/survivor.sh"
# shellcheck source=tests/integration/hosts_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/hosts_lib.sh"

missing=$(hosts_missing)
if [[ $missing ]]; then
    [[ -z ${MLA_EXPECT_HOSTS:-} ]] || mla_fail 1 "$missing"
    echo "SKIPPED: $missing"
    exit 77
fi
case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
keys=/run/keys # on each host what it needs
hosts_make 3
"$mla_bin/mla-keys" "$dir/keys"
on 1 cp -r "$dir/keys" "$keys"

# These hosts have the same cores, and fewer than processes.
export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1

# Of a rank, until it is taken for lost.
silence_ms=$((2000 + ${MLA_SLOW:-0}))

# serve OPTION...: on the first host. Only `serving` is known of it.
serve() {
    rm -f "$dir"/{group-0,coordinator}.log
    become 1 env TMPDIR="$hosts_tmp" setpriv --pdeathsig TERM -- "$mla_root/deploy/mla-serve" \
        --model "$model" --log-dir "$dir" --endpoint 'tcp://*:5755' --curve-keys "$keys" \
        --poll-us 0 --back-off-ms 500 --heartbeat-timeout-ms "$silence_ms" "$@" </dev/null >"$dir/serve.out" 2>"$dir/serve.log" &
    serving=$!
}
until_ready() {
    mla_within 60 is_ready
    grep -q '^ready ' "$dir/serve.out" || mla_fail 1 "it ended: $(cat "$dir/serve.log")"
}
is_ready() {
    grep -q '^ready ' "$dir/serve.out" || ! kill -0 "$serving" 2>/dev/null
}
unserve() {
    local host
    kill -TERM "$serving"
    wait "$serving" || mla_fail 1 "mla-serve ended with $?"
    for host in 1 2 3; do mla_within 10 is_clean "$host"; done
}
is_clean() {
    [[ -z $(hosts_left "$1") ]]
}

check() {
    on "$1" "$mla_bin/mla-check" "$case_dir" --endpoint "tcp://h1:5755" \
        --curve-keys "$dir/keys" | tee "$dir/check.log"
    grep -q '^payloads: inline' "$dir/check.log" ||
        mla_fail 1 "memory is shared with ranks on other hosts"
}

# passed WHAT FROM_NS TO_NS BOUND_MS: other work on the machine may take MLA_SLOW more.
passed() {
    local ms=$((($3 - $2) / 1000000)) bound=$(($4 + ${MLA_SLOW:-0}))
    echo "$1: $ms ms"
    ((ms <= bound)) || mla_fail 1 "$1 after $ms ms, $bound are allowed"
}

# ---- A client, all the time

client_start() {
    survivor become 1 setpriv --pdeathsig KILL "$mla_bin/mla-survive" "$case_dir" \
        --endpoint tcp://h1:5755 --curve-keys "$dir/keys" --seconds 600
}

workers_on() {
    hosts_pids "$1" '^[^ ]*/mla-worker ' | sort
}

# ---- What can't be served

refused() {
    local word=$1 code=0
    serve "${@:2}"
    wait "$serving" || code=$?
    ((code == 2)) || mla_fail 1 "status $code instead of 2 from: $*"
    grep -q -- "$word" "$dir/serve.log" || mla_fail 1 "no '$word' in: $(cat "$dir/serve.log")"
}
refused 'curve-keys' --hosts h2:2,h3:2 --curve-keys ''
refused "'h9' is not known" --hosts h9:2
# A host without its key says so.
on 2 sh -c "mkdir -m 700 $keys && cp $dir/keys/worker.key $dir/keys/server.pub $keys/"
refused "$keys/worker.key" --hosts h2:2,h3:2
on 3 sh -c "mkdir -m 700 $keys && cp $dir/keys/worker.key $dir/keys/server.pub $keys/"
for host in 1 2 3; do mla_within 10 is_clean "$host"; done

# ---- Served

serve --hosts h2:2,h3:2
until_ready
for host in 2 3; do
    [[ $(workers_on "$host" | wc -l) == 2 ]] || mla_fail 1 "not two ranks on host $host"
done
check 1
client_start

# ---- A coordinator that dies under load: the ranks go on, whatever they were sent

for ((i = 0; i < 3; i++)); do
    old=$(workers_on 2 && workers_on 3)
    read -r pid < <(hosts_pids 1 '^[^ ]*/mla-coordinator ')
    sleep "0.$((RANDOM % 5 + 2))"
    since=$(now_ns)
    kill -KILL "$pid"
    mla_within 30 has_after "$since" bad
    error=$(after "$since" bad)
    mla_within 30 has_after "$error" good
    passed "coordinator killed, next result" "$since" "$(after "$error" good)" 3000
    [[ $(workers_on 2 && workers_on 3) == "$old" ]] || mla_fail 1 "other workers serve"
done

# ---- A host is cut off, and comes back

since=$(now_ns)
hosts_cut 3
mla_within 30 has_after "$since" bad
passed "host cut off, typed error" "$since" "$(after "$since" bad)" $((silence_ms + 500))
mapfile -t old < <(workers_on 3)
mla_within 30 grep -q 'group-0 ended with code' "$dir/serve.log"
since=$(now_ns)
hosts_heal 3
mla_within 60 has_after "$since" good
# An attempt of ssh and the pause before the next one may have begun just before.
passed "host back, next result" "$since" "$(after "$since" good)" 10000
mla_within 20 are_gone "${old[@]}"

# ---- Open MPI's daemon on a host dies

mapfile -t old < <(workers_on 2)
read -r pid < <(hosts_pids 2 '^[^ ]*orted ')
since=$(now_ns)
kill -KILL "$pid"
mla_within 30 has_after "$since" bad
passed "daemon killed, typed error" "$since" "$(after "$since" bad)" 500
error=$(after "$since" bad)
mla_within 60 has_after "$error" good
passed "daemon killed, next result" "$since" "$(after "$error" good)" 6000
mla_within 5 are_gone "${old[@]}"

client_stop
check 2
unserve

# ---- Ranks beside the coordinator and elsewhere

serve --hosts h1:1,h3:1
until_ready
check 1
unserve
hosts_end
mla_nothing_left
