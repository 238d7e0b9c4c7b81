#!/usr/bin/env bash
# With a core for each rank, each rank stays on its own and the coordinator on one.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# allowed PID: the processors it may use.
allowed() {
    sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "/proc/$1/status"
}

mapfile -t cpus < <(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r a b; do
    seq "$a" "${b:-$a}"
done)
if ((${#cpus[@]} < 2)); then
    echo "SKIPPED: this needs two processors"
    exit 77
fi
model=$(mla_case_model v3-tiny)
taskset -cp "${cpus[0]},${cpus[1]}" $$ >/dev/null # and so for all that we start
unset OMP_NUM_THREADS
mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint "ipc://$dir/clients" --bind auto
read -r coordinator < <(mla_pids '^[^ ]*/mla-coordinator') || mla_fail 1 "no coordinator"
[[ $(allowed "$coordinator") == "${cpus[1]}" ]] ||
    mla_fail 1 "the coordinator may use $(allowed "$coordinator")"
mapfile -t ranks < <(mla_pids '^[^ ]*/mla-worker')
ranks_on=$(for pid in "${ranks[@]}"; do allowed "$pid"; done | sort -n | tr '\n' ' ')
[[ $ranks_on == "${cpus[0]} ${cpus[1]} " ]] || mla_fail 1 "the ranks may use $ranks_on"
"$mla_bin/mla-check" "$mla_root/tests/golden/v3-tiny" --endpoint "$mla_endpoint"
mla_stop
mla_nothing_left
