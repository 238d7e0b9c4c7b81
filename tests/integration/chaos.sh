#!/usr/bin/env bash
# chaos.sh [--seconds N] [--seed N]: random faults under load for N seconds (20): ranks, mpiruns and
# coordinators that are killed or stopped, in a service of two groups with three clients, each of
# which compares all it gets with golden outputs. Afterwards the service works and holds nothing.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds=20 seed=$RANDOM
while (($#)); do
    case $1 in
    --seconds) seconds=$2 ;;
    --seed) seed=$2 ;;
    *) mla_fail 2 "unknown option $1" ;;
    esac
    shift 2
done
echo "seed $seed"
RANDOM=$seed
case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
mla_start "$dir" 60 --model "$model" --ranks 2 --groups 2 --endpoint "ipc://$dir/clients" \
    --back-off-ms 500 --run-timeout-ms 5000 2>"$dir/serve.log"

clients=()
for i in 1 2 3; do
    payload=auto
    ((i < 3)) || payload=inline
    "$mla_bin/mla-survive" "$case_dir" --endpoint "$mla_endpoint" --seconds 100000 --seed "$i" \
        --payload "$payload" >"$dir/client-$i.log" 2>&1 &
    clients+=($!)
done

# one PATTERN: one of those processes.
one() {
    mapfile -t found < <(mla_pids "$1")
    ((${#found[@]})) || return 1
    victim=${found[RANDOM % ${#found[@]}]}
}

declare -A made=()
fault() {
    local what signal=KILL pattern
    case $((RANDOM % 10)) in
    0 | 1 | 2 | 3) what=rank pattern='^[^ ]*/mla-worker' ;;
    4 | 5) what=rank pattern='^[^ ]*/mla-worker' signal=STOP ;;
    6 | 7) what=mpirun pattern='^mpirun ' ;;
    8) what=coordinator pattern='^[^ ]*/mla-coordinator' ;;
    9) what=coordinator pattern='^[^ ]*/mla-coordinator' signal=STOP ;;
    esac
    one "$pattern" || return 0
    kill -s "$signal" "$victim" 2>/dev/null || return 0
    made[$what-$signal]=$((${made[$what-$signal]:-0} + 1))
    if [[ $what-$signal == coordinator-STOP ]]; then
        sleep 0.$((RANDOM % 10))
        kill -CONT "$victim" 2>/dev/null || true
    fi
}

end=$((SECONDS + seconds))
while ((SECONDS < end)); do
    sleep "$((RANDOM % 2)).$((RANDOM % 10))"
    fault
done
sleep 5 # the last fault is found and repaired
for client in "${clients[@]}"; do
    kill -TERM "$client"
done
code=0
for client in "${clients[@]}"; do
    wait "$client" || code=$?
done
tail -qn +1 "$dir"/client-*.log | grep -vE '^[0-9]+ (good|bad)'
for what in "${!made[@]}"; do
    echo "faults: $what ${made[$what]}"
done
((code == 0)) || mla_fail 1 "a client ended with $code"
! grep -LE ', 0 wrong;' "$dir"/client-*.log | grep . || mla_fail 1 "a client checked nothing"
kill -0 "$mla_serve" || mla_fail 1 "mla-serve ended"
# Everybody is gone: nothing may be used.
"$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 100
mla_stop
mla_nothing_left
