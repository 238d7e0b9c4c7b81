#!/usr/bin/env bash
# A rank is killed while a client is served: the client gets a typed error, and the whole service
# ends and says so.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)

# until_busy PID: until a rank has used some processor time since it became ready.
until_busy() {
    local begin now deadline=$((SECONDS + 60))
    begin=$(awk '{ print $14 + $15 }' "/proc/$1/stat")
    while now=$(awk '{ print $14 + $15 }' "/proc/$1/stat") && ((now < begin + 20)); do
        ((SECONDS < deadline)) || mla_fail 1 "process $1 has nothing to do"
        sleep 0.05
    done
}

# killed RANK
killed() {
    local ranks=() code=0
    rm -f "$dir/serve.out"
    mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint "ipc://$dir/clients"
    mapfile -t ranks < <(mla_pids '^[^ ]*/mla-worker')
    ((${#ranks[@]} == 2)) || mla_fail 1 "${#ranks[@]} ranks instead of 2"
    "$mla_bin/mla-bench" replay --trace "$mla_root/tests/traces/chat-128.csv" --layers 2 \
        --concurrency 8 --endpoint "$mla_endpoint" >"$dir/bench.log" 2>&1 &
    local bench=$!
    until_busy "${ranks[$1]}"
    kill -KILL "${ranks[$1]}"
    wait "$mla_serve" || code=$?
    ((code == 137)) || mla_fail 1 "mla-serve ended with $code after the death of a rank"
    mla_gone 5
    code=0
    wait "$bench" || code=$?
    ((code == 1 || code == 7)) || mla_fail 1 "the client ended with $code"
    grep -E 'failed: (GROUP_LOST|STEP_LOST|NOT_READY|CLOSED): ' "$dir/bench.log" ||
        mla_fail 1 "the client was not told what happened"
    grep -q 'group 0 .* is lost: a worker' "$dir/coordinator.log" ||
        mla_fail 1 "the coordinator didn't see the group go"
}

killed 0
killed 1
mla_nothing_left
