#!/usr/bin/env bash
# The metrics page and /healthz: what they say after a known workload, and in which form.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# value NAME: of a sample in the page.
value() {
    awk -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }' "$dir/page" ||
        mla_fail 1 "no $1 on the page"
}

# expect NAME VALUE
expect() {
    [[ $(value "$1") == "$2" ]] || mla_fail 1 "$1 is $(value "$1") instead of $2"
}

# A coordinator without workers is not healthy.
"$mla_bin/mla-coordinator" --endpoint "ipc://$dir/c" --workers "ipc://$dir/w" \
    --metrics 127.0.0.1:0 >"$dir/alone.out" 2>"$dir/alone.log" &
alone=$!
mla_get "$(mla_metrics_port "$dir/alone.log")" /healthz >"$dir/health"
mla_get "$(mla_metrics_port "$dir/alone.log")" /livez >"$dir/live"
kill "$alone"
wait "$alone"
[[ $(head -n 1 "$dir/health") == *' 503 '* ]] || mla_fail 1 "healthy without workers"
[[ $(head -n 1 "$dir/live") == *' 200 '* ]] || mla_fail 1 "not alive without workers"
grep -qx '0 of 1 groups are ready' "$dir/health" || mla_fail 1 "no sentence in /healthz"
code=0
"$mla_bin/mla-coordinator" --endpoint "ipc://$dir/c" --workers "ipc://$dir/w" \
    --metrics nowhere >/dev/null 2>"$dir/nowhere.log" || code=$?
((code == 5)) || mla_fail 1 "exit code $code instead of 5 for a wrong address"

model=$(mla_case_model v3-tiny)
mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint 'tcp://127.0.0.1:*' \
    --metrics 127.0.0.1:0 --pad-decode --kv-blocks 64
port=$(mla_metrics_port "$dir/coordinator.log")
"$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 500 --rows 13 --in-flight 8 \
    --payload inline
code=0
"$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 1 --rows 100 2>"$dir/full.log" || code=$?
grep -q KV_FULL "$dir/full.log" || mla_fail 1 "100 sequences fit 64 blocks"

# The page is made anew twice a second.
deadline=$((SECONDS + 10))
until mla_get "$port" /metrics >"$dir/answer" && sed 1d "$dir/answer" >"$dir/page" &&
    [[ $(value mla_clients) == 0 && $(value 'mla_requests_total{type="open"}') == 2 ]]; do
    ((SECONDS < deadline)) || mla_fail 1 "the page doesn't tell of the client"
    sleep 0.1
done
[[ $(head -n 1 "$dir/answer") == *' 200 '* ]] || mla_fail 1 "no page"
mla_get "$port" /healthz >"$dir/health"
[[ $(head -n 1 "$dir/health") == *' 200 '* ]] || mla_fail 1 "not healthy"
mla_get "$port" /other >"$dir/other"
[[ $(head -n 1 "$dir/other") == *' 404 '* ]] || mla_fail 1 "something at /other"

hidden=$(sed -n 's/.*"hidden_size": *\([0-9]*\).*/\1/p' "$model/config.json")
expect 'mla_requests_total{type="run"}' 500
expect 'mla_requests_total{type="hello"}' 2
expect 'mla_errors_total{code="KV_FULL"}' 1
expect 'mla_errors_total{code="BUSY"}' 0
expect 'mla_tokens_total{phase="decode"}' 13
expect 'mla_tokens_total{phase="prefill"}' 0
expect mla_payload_received_bytes_total $((500 * 13 * hidden * 4))
expect mla_payload_sent_bytes_total $((500 * 13 * hidden * 4))
expect 'mla_run_duration_seconds_count{phase="decode"}' 500
expect 'mla_run_duration_seconds_bucket{phase="decode",le="+Inf"}' 500
expect 'mla_run_duration_seconds_count{phase="prefill"}' 0
expect 'mla_microbatch_rows_bucket{phase="decode",le="8"}' 0
expect 'mla_microbatch_rows_bucket{phase="decode",le="16"}' 500
expect 'mla_microbatch_rows_sum{phase="decode"}' $((500 * 13))
expect 'mla_padding_rows_total{phase="decode"}' $((500 * 3))
expect 'mla_decode_bucket_hits_total{bucket="16"}' 500
expect 'mla_decode_bucket_hits_total{bucket="8"}' 0
expect mla_steps_open 0
expect mla_kv_blocks_used 0
expect mla_kv_blocks_free 64
expect mla_groups_ready 1
expect 'mla_group_state{group="0",state="ready"}' 1
expect 'mla_group_state{group="0",state="empty"}' 0
[[ $(value 'mla_group_epoch{group="0"}') != 0 ]] || mla_fail 1 "a group without an epoch"
expect 'mla_group_restarts_total{group="0"}' 0
expect 'mla_connections_refused_total{endpoint="clients",reason="key"}' 0
expect 'mla_connections_cut_total{endpoint="clients",reason="unread"}' 0

# Every sample belongs to the metric whose HELP and TYPE came last, and its name says its type.
awk '
    /^# HELP / { help = $3; next }
    /^# TYPE / { type = $4; name = $3; if (name != help || seen[name]++) exit 1; next }
    {
        sample = $1
        sub(/\{.*/, "", sample)
        if (type == "histogram") sub(/_(bucket|sum|count)$/, "", sample)
        if (sample != name || $2 !~ /^[0-9.e+-]+$/ || NF != 2) exit 1
        if ((type == "counter") != (name ~ /_total$/)) exit 1
    }' "$dir/page" || mla_fail 1 "the page is not in Prometheus' format"
promtool check metrics <"$dir/page"
mla_stop
mla_nothing_left
