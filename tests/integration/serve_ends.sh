#!/usr/bin/env bash
# What ends mla-serve, and that nothing is left then, however it ends; what is started again
# instead, and after which pauses.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)

start() {
    rm -f "$dir/serve.out"
    mla_start "$dir" 60 --model "$model" --ranks 2 --groups 2 --endpoint "ipc://$dir/clients"
}

# ends SIGNAL PATTERN WANT: sends it to the first process that matches; mla-serve's status is WANT.
ends() {
    local signal=$1 pattern=$2 want=$3 victim='' code=0
    start
    read -r victim < <(mla_pids "$pattern") || mla_fail 1 "no process matches '$pattern'"
    kill -s "$signal" "$victim"
    wait "$mla_serve" || code=$?
    ((code == want)) || mla_fail 1 "status $code instead of $want after $signal to $pattern"
    mla_gone 10
}

ends TERM '^bash .*mla-serve' 0
ends TERM '^[^ ]*/mla-coordinator' 0
ends KILL '^bash .*mla-serve' 137

# is_running PATTERN: in `victim`.
is_running() {
    read -r victim < <(mla_pids "$1")
}

# Pauses grow: the same group three times in a row.
start 2>"$dir/serve.log"
for pause in 0 200 400; do
    mla_within 10 is_running '^mpirun .*--group 1 '
    kill -KILL "$victim"
    mla_within 10 grep -q "group-1 ended with code 137: started again in $pause ms" "$dir/serve.log"
done
[[ $(grep -c 'started again' "$dir/serve.log") == 3 ]] || mla_fail 1 "other processes ended, too"
mla_stop
mla_nothing_left
