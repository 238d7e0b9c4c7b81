#!/usr/bin/env bash
# tests/bench/gpu from end to end, with CPU ranks: every section works, and what fails is told.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TMPDIR=$dir "$mla_root/tests/bench/gpu" "$dir/out" --backend cpu --minutes 5 machine groups collectives \
    attention prefill layer run replay >"$dir/gpu.log" 2>&1
for wanted in 'golden-v3-tiny-2x1 .* ok' ' 16 ' 'run-lite, median.*(ok|MISSED)' \
    'run-large-2x1, 3 in flight' 'run-lite-spin, 1 in flight .*median [0-9]' 'GPU computes, replay.*(ok|MISSED)' \
    'replay, mixed over its halves.*(ok|MISSED)' ' 0 missed'; do
    grep -qE "$wanted" "$dir/out/summary.txt" || mla_fail 1 "the summary lacks: $wanted"
done
files=("$dir"/out/*)
((${#files[@]} <= 8)) || mla_fail 1 "too many files: ${files[*]}"
tar -tzf "$dir/out/logs.tar.gz" >"$dir/list"
for wanted in attention.json collectives-2.json run-lite.json replay-spin-3.json replay-spin-halves.json layer-; do
    grep -q "/$wanted" "$dir/list" || mla_fail 1 "the logs lack: $wanted"
done

# What fails is told.
code=0
MLA_BIN=$dir/nowhere "$mla_root/tests/bench/gpu" "$dir/failed" --backend cpu attention \
    >>"$dir/gpu.log" 2>&1 || code=$?
((code == 1)) || mla_fail 1 "code $code after a failure"
grep -q FAILED "$dir/failed/summary.txt" || mla_fail 1 "a failure is not told"
mla_nothing_left
