#!/usr/bin/env bash
# peers.sh [--times N] [--out FILE]: clients that vanish, strangers, configurations and checkpoints
# that are wrong, N times each (1). Prints how long the service took to be rid of them: lines of
# "FAULT WHAT MS".
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

times=1
exec {results}>&1
while (($#)); do
    case $1 in
    --times) times=$2 ;;
    --out) exec {results}>>"$2" ;;
    *) mla_fail 2 "unknown option $1" ;;
    esac
    shift 2
done

# measured FAULT WHAT BOUND_MS SINCE_NS: other work on the machine may take MLA_SLOW more.
measured() {
    local ms=$((($(date +%s%N) - $4) / 1000000))
    echo "$1 $2 $ms" >&"$results"
    ((ms <= $3 + ${MLA_SLOW:-0})) || mla_fail 1 "$1: $2 after $ms ms, $3 are allowed"
}

# value NAME: of a sample of the service's page.
value() {
    mla_get "$port" /metrics >"$dir/page"
    awk -v name="$1" '$1 == name { print $2 }' "$dir/page"
}
is_value() {
    [[ $(value "$1") == "$2" ]]
}
are_busy() {
    is_value mla_clients 4 && [[ $(value mla_steps_open) == 4 ]]
}
are_gone() {
    is_value mla_clients 0 && is_value mla_steps_open 0 && is_value mla_kv_blocks_used 0
}

fault_vanished() {
    local i since clients=()
    for ((i = 0; i < 4; i++)); do
        "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 100000000 --in-flight 4 \
            --curve-keys "$dir/keys" --payload inline >"$dir/soak-$i.log" 2>&1 &
        clients+=($!)
    done
    mla_within 30 are_busy
    since=$(date +%s%N)
    kill -KILL "${clients[@]}"
    mla_within 30 are_gone
    measured vanished free 1000 "$since"
    wait "${clients[@]}" 2>/dev/null || true
}

fault_stranger() {
    local code=0 since
    since=$(date +%s%N)
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 1 --curve-keys "$dir/stranger" \
        >"$dir/stranger.log" 2>&1 || code=$?
    measured stranger refused 1000 "$since"
    ((code == 7)) || mla_fail 1 "exit code $code of a client whose key is not allowed"
    grep -q 'does not allow this key' "$dir/stranger.log" || mla_fail 1 "the stranger isn't told"
}

# refused FAULT CODE
refused() {
    local code=0 since
    since=$(date +%s%N)
    TMPDIR=$dir "$mla_root/deploy/mla-serve" --model "$dir/$1" --log-dir "$dir" \
        --endpoint "ipc://$dir/clients" >"$dir/refused.out" 2>"$dir/refused.log" || code=$?
    measured "$1" ended 5000 "$since"
    ((code == $2)) || mla_fail 1 "exit code $code instead of $2 for a wrong $1"
    [[ ! -s $dir/refused.out && ! -e $dir/clients ]] || mla_fail 1 "a wrong $1 is served"
}

# page_port: where the page is.
page_port() {
    port=$(sed -n 's,^metrics at http://127.0.0.1:\([0-9]*\)/metrics$,\1,p' "$dir/coordinator.log")
    [[ -n $port ]]
}

model=$(mla_case_model v3-tiny)
mkdir "$dir/config" "$dir/checkpoint" "$dir/stranger"
echo '{"kv_lora_rank": ' >"$dir/config/config.json"
ln -s "$model/model.safetensors" "$dir/config"
cp "$model/config.json" "$dir/checkpoint"
head -c 100000 "$model/model.safetensors" >"$dir/checkpoint/model.safetensors"
"$mla_bin/mla-keys" "$dir/keys"
"$mla_bin/mla-keys" "$dir/others"
cp "$dir/others/client.key" "$dir/keys/server.pub" "$dir/stranger/"

for ((i = 0; i < times; i++)); do
    refused config 3
    refused checkpoint 4
done
mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint 'tcp://127.0.0.1:*' \
    --curve-keys "$dir/keys" --metrics 127.0.0.1:0 --heartbeat-ms 100 2>"$dir/serve.log"
mla_within 10 page_port
for ((i = 0; i < times; i++)); do
    fault_stranger
    fault_vanished
done
is_value 'mla_connections_refused_total{endpoint="clients",reason="key"}' 0 &&
    mla_fail 1 "strangers are not counted"
mla_stop
mla_nothing_left
