#!/usr/bin/env bash
# With --spin ZeroMQ's threads in coordinator, rank and client don't sleep, and those that wait for
# heartbeats do; without it all do.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)

# ticks PID SPINS: what ZeroMQ's threads of a process have had of a core, in hundredths of a second:
# those that are told to spin (yes), or the others.
ticks() {
    local task name sum=0 fields
    for task in "/proc/$1/task/"*; do
        name=$(cat "$task/comm")
        [[ $name == *ZMQbg/IO* ]] || continue
        [[ $2 == yes && $name == 5214/* || $2 == no && $name != 5214/* ]] || continue
        read -r -a fields < <(sed 's/.*) //' "$task/stat")
        sum=$((sum + fields[11] + fields[12]))
    done
    echo "$sum"
}

# serve OPTION...: sets pids, of the coordinator and the rank.
serve() {
    rm -rf "$dir/serve"
    mkdir -m 700 "$dir/serve"
    mla_start "$dir/serve" 60 --model "$model" --endpoint "ipc://$dir/clients" "$@"
    mapfile -t pids < <(mla_pids '^[^ ]*/mla-(coordinator|worker)')
    ((${#pids[@]} == 2)) || mla_fail 1 "${#pids[@]} processes"
}

# What they take while RUNs come.
serve --spin
before=()
for pid in "${pids[@]}"; do before+=("$(ticks "$pid" yes) $(ticks "$pid" no)"); done
"$mla_bin/mla-bench" run --endpoint "$mla_endpoint" --context 16 --seconds 1 --opens 5 --spin \
    --json "$dir/run.json"
for i in 0 1; do
    read -r spun slept <<<"${before[i]}"
    spun=$(($(ticks "${pids[i]}" yes) - spun)) slept=$(($(ticks "${pids[i]}" no) - slept))
    ((spun >= 5 && slept <= 5)) || mla_fail 1 "process $i: $spun and $slept hundredths of a second"
done
grep -q '"client_spins": true' "$dir/run.json" || mla_fail 1 "the client did not spin"
"$mla_bin/mla-bench" replay --trace "$mla_root/tests/traces/chat-128.csv" --limit 4 --layers 2 \
    --endpoint "$mla_endpoint" --concurrency 4 --lanes 2 --spin --json "$dir/replay.json"
grep -q '"client_spins": true' "$dir/replay.json" || mla_fail 1 "the replay did not spin"
mla_stop

serve
for pid in "${pids[@]}"; do
    [[ $(ticks "$pid" yes) == 0 ]] || mla_fail 1 "threads spin without --spin"
    ! grep -q '^5214' "/proc/$pid/task/"*/comm || mla_fail 1 "a thread is to spin without --spin"
done
mla_stop
mla_nothing_left
