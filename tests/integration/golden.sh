#!/usr/bin/env bash
# golden.sh CASE RANKS GROUPS [--tolerance T] [OPTION...]: serves the golden case's own layers and
# compares the outputs. OPTIONs are mla-serve's. Payloads are in shared memory but with
# --payload inline. Nothing may be left behind.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name=$1 ranks=$2 groups=$3
shift 3
check=()
if [[ ${1:-} == --tolerance ]]; then
    check=("$1" "$2")
    shift 2
fi
case_dir=$mla_root/tests/golden/$name

model=$(mla_case_model "$name")
mla_start "$dir" 300 --model "$model" --ranks "$ranks" --groups "$groups" \
    --endpoint "ipc://$dir/clients" "$@"
payloads='shared memory'
[[ " $* " != *' --payload inline '* ]] || payloads=inline
"$mla_bin/mla-check" "$case_dir" --endpoint "$mla_endpoint" "${check[@]}" | tee "$dir/check.log"
grep -qx "payloads: $payloads" "$dir/check.log" || mla_fail 1 "payloads did not travel: $payloads"
mla_stop
mla_nothing_left
