#!/usr/bin/env bash
# limits.sh [--unbounded | --measured]: clients that take what they can get (hostile_limits.c), against a service
# with low limits. Its memory stays below the cap, and the coordinator is the same process in the
# end. --measured: only those whose time tests/reliability tells.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)
memory=(--memory-max 1500M)
[[ ${1:-} != --unbounded ]] || memory=() # a sanitizer takes all address space there is
mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint 'tcp://127.0.0.1:*' \
    --workers "ipc://$dir/workers" --clients-max 16 --payload-memory 64M --frame-bytes-max 16M \
    "${memory[@]}"
read -r coordinator < <(mla_pids '^[^ ]*/mla-coordinator') || mla_fail 1 "no coordinator"
export MLA_TEST_ENDPOINT=$mla_endpoint MLA_TEST_WORKERS=ipc://$dir/workers
((${#memory[@]} == 0)) || export MLA_TEST_MEMORY=bounded
tests='limits/*'
[[ ${1:-} != --measured ]] || tests='limits/@(garbage_*|a_*|frames_*)'
"$mla_bin/hostile-limits" --jobs 1 --verbose --filter "$tests"
kill -0 "$coordinator" || mla_fail 1 "the coordinator ended"
if ((${#memory[@]})); then
    peak=$(sed -n 's/^VmPeak:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/$coordinator/status")
    echo "address space: at most $((peak / 1024)) MiB of 1500"
    ((peak < 1500 << 10)) || mla_fail 1 "it took $peak KiB"
    [[ ${1:-} == --measured ]] || grep -q 'of --memory-max is taken' "$dir/coordinator.log" ||
        mla_fail 1 "nothing was too much"
fi
mla_stop
mla_nothing_left
