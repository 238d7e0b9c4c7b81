#!/usr/bin/env bash
# However a process of the service ends, all others end too and mla-serve says so.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)

# ends SIGNAL PATTERN WANT: sends it to the first process that matches; mla-serve's status is WANT.
ends() {
    local signal=$1 pattern=$2 want=$3 victim='' code=0
    rm -f "$dir/serve.out"
    mla_start "$dir" 60 --model "$model" --ranks 2 --groups 2 --endpoint "ipc://$dir/clients"
    read -r victim < <(mla_pids "$pattern") || mla_fail 1 "no process matches '$pattern'"
    kill -s "$signal" "$victim"
    wait "$mla_serve" || code=$?
    ((code == want)) || mla_fail 1 "status $code instead of $want after $signal to $pattern"
    mla_gone 10
}

ends TERM '^bash .*mla-serve' 0
ends TERM '^[^ ]*/mla-coordinator' 0
ends KILL '^[^ ]*/mla-coordinator' 137
ends KILL '^[^ ]*/mla-worker' 137
ends KILL '^mpirun' 137
ends KILL '^bash .*mla-serve' 137
mla_nothing_left
