#!/usr/bin/env bash
# Dashboard and alerts: their queries against a real Prometheus that scrapes a service under load,
# and what promtool says of rules and page.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../integration/lib.sh"

grafana=$mla_root/deploy/grafana
promtool check rules "$grafana/alerts.yaml"
sed "s,ALERTS,$grafana/alerts.yaml," "$mla_root/tests/deploy/alerts.yaml" >"$dir/alerts.yaml"
promtool test rules "$dir/alerts.yaml"
while read -r alert; do
    grep -qx "### $alert" "$mla_root/deploy/RUNBOOK.md" || mla_fail 1 "RUNBOOK.md lacks $alert"
    grep -q "alertname: $alert" "$mla_root/tests/deploy/alerts.yaml" || mla_fail 1 "$alert is not tested"
done < <(sed -n 's/^ *- alert: //p' "$grafana/alerts.yaml")

# The example configuration, with this machine's ports.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
mla_start "$dir" 60 --model "$(mla_case_model v3-tiny)" --ranks 2 --kv-blocks 96 --pad-decode \
    --endpoint "ipc://$dir/clients" --metrics 127.0.0.1:0
page=127.0.0.1:$(mla_metrics_port "$dir/coordinator.log")
port=$(free_port)
sed -e "s,mla:9464,$page,; s,scrape_interval: .*,scrape_interval: 1s," \
    -e "s,/etc/prometheus/mla/,$grafana/," "$grafana/prometheus.yaml" >"$dir/prometheus.yaml"
promtool check config "$dir/prometheus.yaml"
began=$(date +%s)
setpriv --pdeathsig TERM prometheus --config.file="$dir/prometheus.yaml" \
    --storage.tsdb.path="$dir/tsdb" --web.listen-address="127.0.0.1:$port" \
    --log.level=warn >"$dir/prometheus.log" 2>&1 &
prometheus=$!

# Load of all kinds, KV_FULL among it, for some scrapes.
for ((pass = 0; pass < 3 || $(date +%s) < began + 8; pass++)); do
    "$mla_bin/mla-check" "$mla_root/tests/golden/v3-tiny" --endpoint "$mla_endpoint" \
        --payload inline >/dev/null
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 200 --rows 13 --in-flight 8 >/dev/null
    ! "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 1 --rows 200 >/dev/null 2>&1 ||
        mla_fail 1 "200 sequences fit 96 blocks"
done
# What came last is scraped a second later; a gauge shows only what a scrape finds at work.
dashboard() {
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 3000 --rows 13 --in-flight 8 >/dev/null
    python3 "$mla_root/tests/deploy/dashboard.py" "http://127.0.0.1:$port" "$began" 2>"$dir/why.log"
}
mla_within 20 dashboard
[[ $(mla_get "$port" /api/v1/rules | tail -n 1) != *'"health":"err"'* ]] ||
    mla_fail 1 "a rule can't be evaluated"
kill "$prometheus"
wait "$prometheus" || true
mla_stop
mla_nothing_left
