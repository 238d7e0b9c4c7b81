#!/usr/bin/env bash
# A rank and later a whole job are killed under mla-bench replay, as an upstream scheduler would see
# it: its requests are prefilled again and all of them come to their end.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

requests=128
model=$(mla_case_model v3-tiny)
mla_start "$dir" 60 --model "$model" --ranks 2 --groups 2 --endpoint "ipc://$dir/clients" \
    --back-off-ms 0 2>"$dir/serve.log"
"$mla_bin/mla-bench" replay --trace "$mla_root/tests/traces/chat-128.csv" --layers 2 \
    --concurrency 8 --endpoint "$mla_endpoint" \
    >"$dir/bench.log" 2>&1 &
bench=$!
for pattern in '^[^ ]*/mla-worker' '^mpirun ' '^[^ ]*/mla-worker'; do
    sleep 0.7
    kill -0 "$bench" || mla_fail 1 "the replay ended before the last kill"
    read -r victim < <(mla_pids "$pattern") || mla_fail 1 "no process matches '$pattern'"
    kill -KILL "$victim"
done
code=0
wait "$bench" || code=$?
((code == 0)) || mla_fail 1 "the replay ended with $code"
cat "$dir/bench.log"
grep -qE "^Successful requests: +$requests\$" "$dir/bench.log" || mla_fail 1 "requests were lost"
grep -qE '^Preemptions: +[1-9]' "$dir/bench.log" || mla_fail 1 "no sequence was computed again"
mla_stop
mla_nothing_left
