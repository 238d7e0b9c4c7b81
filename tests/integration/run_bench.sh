#!/usr/bin/env bash
# mla-bench run against a small service, in both payload ways, with one step in flight and three:
# it tells what it measured, and leaves the service empty.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)
mla_start "$dir" 60 --model "$model" --endpoint "ipc://$dir/clients"
service=$(mla_pids '^[^ ]*/mla-(coordinator|worker)' | paste -sd,)
bench() {
    "$mla_bin/mla-bench" run --endpoint "$mla_endpoint" --context 65 --warm-up 0.05 --opens 5 "$@"
}

for payload in shared inline; do
    bench --payload "$payload" --in-flight 1,3 --seconds 0.4 --pids "$service" \
        --json "$dir/$payload.json"
    grep -q "\"payload\": \"$payload\"" "$dir/$payload.json" || mla_fail 1 "not $payload"
    for key in workers_cores not_compute_us runs_per_s; do
        [[ $(grep -c "\"$key\"" "$dir/$payload.json") == 2 ]] ||
            mla_fail 1 "$key is not told for both rounds"
    done
    ! grep -E '"(runs|runs_per_s|workers_cores)": 0(\.0)?,' "$dir/$payload.json" ||
        mla_fail 1 "nothing was measured"
done
# As many RUNs as were asked for, and no more.
bench --repeat 7 --in-flight 3 --dtype f32 --pids "$service" >"$dir/repeat.out"
grep -q '^RUNs, 3 in flight (7),' "$dir/repeat.out" ||
    mla_fail 1 "--repeat 7 was not 7 RUNs"
code=0
bench --layers 3 --pids "$service" 2>"$dir/refused.log" || code=$?
[[ $code == 2 ]] || mla_fail 1 "layers that are not there: exit code $code"
grep -q 'the service has at most 2' "$dir/refused.log" || mla_fail 1 "no sentence about layers"
"$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 10 # nothing is left of them
mla_stop
mla_nothing_left
