#!/usr/bin/env bash
# The coordinator's memory is the same before and after 100,000 RUNs: inline, in shared memory.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

growth_kib_max=1024

# rss_kib PID
rss_kib() {
    sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/$1/status"
}

model=$(mla_case_model v3-tiny)
mla_start "$dir" 60 --model "$model" --endpoint "ipc://$dir/clients"
read -r coordinator < <(mla_pids '^[^ ]*/mla-coordinator') || mla_fail 1 "no coordinator"
read -r worker < <(mla_pids '^[^ ]*/mla-worker') || mla_fail 1 "no worker"
for payload in inline auto; do
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --payload "$payload" --runs 5000
    before=$(rss_kib "$coordinator") worker_before=$(rss_kib "$worker")
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --payload "$payload" --runs 100000
    after=$(rss_kib "$coordinator") worker_after=$(rss_kib "$worker")
    echo "VmRSS with --payload $payload: coordinator $before KiB, then $after KiB;" \
        "worker $worker_before KiB, then $worker_after KiB"
    ((after - before <= growth_kib_max)) || mla_fail 1 "it grew by $((after - before)) KiB"
    ((worker_after - worker_before <= growth_kib_max)) ||
        mla_fail 1 "the worker grew by $((worker_after - worker_before)) KiB"
done
mla_stop
mla_nothing_left
