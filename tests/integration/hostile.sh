#!/usr/bin/env bash
# Clients that do what they must not (hostile.c), one after the other, against one service.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)
mla_start "$dir" 300 --model "$model" --ranks 2 --endpoint "ipc://$dir/clients"
MLA_TEST_ENDPOINT=$mla_endpoint "$mla_bin/hostile" --jobs 1
mla_stop
mla_nothing_left
