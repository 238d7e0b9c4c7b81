#!/usr/bin/env bash
# mla-size says what a real service then has.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# field NAME: of mla-size's JSON on stdin.
field() {
    sed -n "s/^ \"$1\": \([a-z0-9-]*\),\{0,1\}\$/\1/p"
}

# fetch PORT: the metrics page, once it knows of the group.
fetch() {
    mla_get "$1" /metrics >"$dir/page" && grep -q '^mla_groups_ready 1' "$dir/page"
}

# same CASE LAYERS RANKS OPTION...: as many blocks as the service has of the same memory.
same() {
    local model ranks=$3 layers=$2 said found
    model=$(mla_case_model "$1")
    shift 3
    rm -rf "$dir/run" && mkdir "$dir/run"
    said=$("$mla_bin/mla-size" --config "$model" --backend cpu --gpus "$ranks" --layers "$layers" \
        --json "$@" | field blocks)
    mla_start "$dir/run" 60 --model "$model" --ranks "$ranks" --endpoint "ipc://$dir/run/clients" \
        --metrics 127.0.0.1:0 "$@"
    mla_within 10 fetch "$(mla_metrics_port "$dir/run/coordinator.log")"
    found=$(sed -n 's/^mla_kv_blocks_free //p' "$dir/page")
    mla_stop
    cat "$dir"/run/*.log >>"$dir/all.log"
    [[ $said && $said == "$found" ]] || mla_fail 1 "$said blocks said, $found there: $*"
    echo "$model, $ranks ranks, $*: $said blocks"
}

same v3-tiny 0-1 2 --kv-memory 5000000
same v3-tiny 0-1 1 --kv-memory 5M --kv-dtype bf16

size=("$mla_bin/mla-size" --config "$mla_root/tests/golden/v3/config.json" --json)
code=0
"${size[@]}" --gpus 8 --gpu-memory 80G >"$dir/fits" || code=$?
[[ "$code $(field fits <"$dir/fits")" == "0 true" ]] || mla_fail 1 "V3 does not fit 8 x 80G"
"${size[@]}" --gpus 1 --gpu-memory 8G >"$dir/fits" || code=$?
[[ "$code $(field fits <"$dir/fits")" == "6 false" ]] || mla_fail 1 "V3 fits 8G"

# What it says of the largest batch and context is the limit, and one more does not fit.
at() {
    code=0
    "${size[@]}" --gpus 8 --gpu-memory 80G "$@" >"$dir/at" || code=$?
}
at --context 4096
most=$(sed -n 's/.*"batch_max": \([0-9]*\).*/\1/p' "$dir/at")
at --context 4096 --batch "$most"
((code == 0)) || mla_fail 1 "$most sequences do not fit"
at --context 4096 --batch $((most + 1))
((code == 6)) || mla_fail 1 "$most sequences are not the most"
at --batch 200
context=$(field context_max <"$dir/at")
at --batch 200 --context "$context"
((code == 0)) || mla_fail 1 "$context tokens do not fit"
at --batch 200 --context $((context + 1))
((code == 6)) || mla_fail 1 "$context tokens are not the most"

# refuse CODE OPTION...
refuse() {
    local want=$1 code=0
    shift
    "$mla_bin/mla-size" "$@" >/dev/null 2>"$dir/why" || code=$?
    ((code == want)) || mla_fail 1 "code $code instead of $want from: $*"
    [[ -s $dir/why ]] || mla_fail 1 "no sentence from: $*"
}
tiny=$mla_root/tests/golden/v3-tiny
refuse 2
refuse 2 --config "$tiny" --gpus 3
refuse 2 --config "$tiny" --gpus 4 --groups 3
refuse 2 --config "$tiny" --layers 0-7
refuse 2 --config "$tiny" --gpu-memory 1X
refuse 2 --config "$tiny" --prefill-tokens-max 99999999
refuse 3 --config "$dir/nowhere"
mla_nothing_left
