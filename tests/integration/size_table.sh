#!/usr/bin/env bash
# The table of sizes in deploy/SIZING.md is what mla-size says; with --print: prints it anew.
set -euo pipefail
# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"

dir=$(mktemp -d "${TMPDIR:-/tmp}/mla-test.XXXXXX")
trap 'rm -rf "$dir"' EXIT
golden=$mla_root/tests/golden
# Kimi-K2's attention is V3's with half of the heads, for 131072 tokens.
mkdir "$dir/kimi-k2"
sed 's/\("num_attention_heads": *\)[0-9]*/\164/; s/\("max_position_embeddings": *\)[0-9]*/\1131072/' \
    "$golden/v3/config.json" >"$dir/kimi-k2/config.json"

# row NAME CONFIG GPUS GROUPS MEMORY
row() {
    "$mla_bin/mla-size" --config "$2" --gpus "$3" --groups "$4" --gpu-memory "$5" --json \
        --context 4096 |
        awk -v name="$1" -v gpus="$3" -v groups="$4" -v memory="$5" '
            { gsub(/[",]/, ""); sub(/:$/, "", $1); of[$1] = $2 }
            function gib(key) { return sprintf("%.2f", of[key] / 2 ^ 30) }
            END {
                printf "| %s | %d in %d | %s | %s | %s | %s | %d | %d | %d | %s |\n", name, gpus,
                    groups, memory, gib("weight_bytes"), gib("workspace_bytes"), gib("kv_bytes"),
                    of["kv_token_bytes"], of["blocks"] * 64 * groups, of["batch_max"],
                    gib("left_bytes")
            }'
}

table() {
    local memory
    echo '| model | GPUs, groups | free on each | weights | workspaces | KV cache | bytes a token | tokens | sequences of 4096 | left |'
    echo '|---|---|---|---|---|---|---|---|---|---|'
    for memory in 78G 139G; do
        row DeepSeek-V2-Lite "$golden/v2-lite" 1 1 "$memory"
        row DeepSeek-V3 "$golden/v3" 1 1 "$memory"
        row DeepSeek-V3 "$golden/v3" 8 1 "$memory"
        row DeepSeek-V3 "$golden/v3" 8 2 "$memory"
        row DeepSeek-V3 "$golden/v3" 8 8 "$memory"
        row Kimi-K2 "$dir/kimi-k2" 8 1 "$memory"
        row Kimi-K2 "$dir/kimi-k2" 8 8 "$memory"
    done
}

if [[ ${1:-} == --print ]]; then
    table
    exit
fi
sed -n '/<!-- sizes: begin/,/<!-- sizes: end/{/<!--/!p}' "$mla_root/deploy/SIZING.md" |
    diff - <(table) || mla_fail 1 "deploy/SIZING.md does not say what mla-size says"
