#!/usr/bin/env bash
# The Dockerfile: linted, its steps carried out, and what the image runs when it is started.
set -euo pipefail
# shellcheck source=tests/deploy/image.sh
source "$(dirname "${BASH_SOURCE[0]}")/image.sh"
image_namespace "${BASH_SOURCE[0]}" "$@"
# shellcheck source=tests/integration/lib.sh
source "$mla_root/tests/integration/lib.sh"

venv_program hadolint
"$venv_program" --failure-threshold style "$mla_root/deploy/container/Dockerfile"

model=$(mla_case_model v3-tiny)
image_mount
image_build "$(dirname "$mla_bin")" >"$dir/build.log"
tail -n 1 "$dir/build.log"
mkdir -p "$image_root/models"
cp -r "$model" "$image_root/models/tiny"

# Nothing of an image may be a secret that all who have it share.
! compgen -G "$image_root/etc/ssh/ssh_host_*_key" || mla_fail 1 "the image has keys of a host"
[[ $(image_run id -un) == mla ]] || mla_fail 1 "the user is $(image_run id -un)"
image_run sh -c 'test -w /home/mla && ! test -w /opt/mla' ||
    mla_fail 1 "the user can write where it should not, or can't where it should"

image_run "${image_entry[@]}" "${image_command[@]}" | grep -q '^usage: mla-serve' ||
    mla_fail 1 "the image does not say how to use it"

# docker run mla --model ...
image_exec OMP_NUM_THREADS=1 "${image_entry[@]}" --model /models/tiny --ranks 2 \
    --endpoint tcp://127.0.0.1:5755 >"$dir/ready" 2>"$dir/serve.log" &
serve=$!
mla_within 60 grep -q '^ready tcp://127.0.0.1:5755' "$dir/ready"
image_run mla-check /opt/mla/tests/golden/v3-tiny --endpoint tcp://127.0.0.1:5755 | tail -n 1
kill -TERM "$serve"
wait "$serve" || mla_fail 1 "mla-serve ended with $?"
mla_within 10 bash -c '! { pgrep -x mla-worker || pgrep -x mla-coordinator; } >/dev/null'
