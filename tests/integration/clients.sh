#!/usr/bin/env bash
# Two clients of one service at once: each gets its own outputs, and nothing is left of either.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
mla_start "$dir" 300 --model "$model" --ranks 2 --endpoint "ipc://$dir/clients"
"$mla_bin/mla-check" "$case_dir" --endpoint "$mla_endpoint" >"$dir/first.log" 2>&1 &
first=$!
"$mla_bin/mla-check" "$case_dir" --endpoint "$mla_endpoint" >"$dir/second.log" 2>&1 &
second=$!
code=0
wait "$first" || code=$?
wait "$second" || code=$?
((code == 0)) || mla_fail 1 "mla-check ended with $code"
# Otherwise they were there one after the other.
grep -q 'there are other clients' "$dir/first.log" "$dir/second.log" ||
    mla_fail 1 "the clients were not there at the same time"
"$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 100
# Three schedulers, with requests of every lane in the result.
"$mla_bin/mla-bench" replay --trace "$mla_root/tests/traces/chat-128.csv" --layers 2 --limit 7 \
    --concurrency 6 --lanes 3 --endpoint "$mla_endpoint" >"$dir/replay.log"
grep -qE '^Successful requests: +7$' "$dir/replay.log" || mla_fail 1 "$(cat "$dir/replay.log")"
mla_stop
mla_nothing_left
