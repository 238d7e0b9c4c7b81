#!/usr/bin/env bash
# A service on tcp with keys: clients that have an allowed one are served, all others are refused
# within a second, and what other hosts could reach without keys is not even listened at.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
"$mla_bin/mla-keys" "$dir/keys"
"$mla_bin/mla-keys" "$dir/keys" --client alice
"$mla_bin/mla-keys" "$dir/others"
mkdir "$dir/stranger" # knows the service, and has a key that the service doesn't
cp "$dir/others/client.key" "$dir/keys/server.pub" "$dir/stranger/"
code=0
"$mla_bin/mla-keys" "$dir/keys" 2>>"$dir/keys.log" || code=$?
((code == 2)) || mla_fail 1 "mla-keys ended with $code where there are keys"

# refused WORD OPTION...: the coordinator ends with 2 and a sentence that has WORD in it.
refused() {
    local word=$1 code=0
    shift
    timeout 10 "$mla_bin/mla-coordinator" --workers "ipc://$dir/workers" "$@" \
        >"$dir/refused.out" 2>"$dir/refused.log" || code=$?
    ((code == 2)) || mla_fail 1 "exit code $code instead of 2 from: $*"
    [[ ! -s $dir/refused.out ]] || mla_fail 1 "something was bound from: $*"
    grep -q -- "$word" "$dir/refused.log" || mla_fail 1 "no '$word' in the sentence from: $*"
}
refused curve-keys --endpoint 'tcp://0.0.0.0:*'
refused curve-keys --endpoint 'tcp://127.0.0.1:*' --workers 'tcp://*:*'
refused server.key --endpoint 'tcp://0.0.0.0:*' --curve-keys "$dir/stranger"
mkdir -p "$dir/open"
chmod 755 "$dir" "$dir/open"
refused 'only this user' --endpoint "ipc://$dir/open/clients"
chmod 700 "$dir"

mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint 'tcp://127.0.0.1:*' \
    --workers 'tcp://127.0.0.1:*' --curve-keys "$dir/keys"
"$mla_bin/mla-check" "$case_dir" --endpoint "$mla_endpoint" --curve-keys "$dir/keys" \
    --payload inline | tee "$dir/check.log"
soak() {
    "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 200 "$@"
}
soak --curve-keys "$dir/keys/alice"
"$mla_bin/mla-survive" "$case_dir" --endpoint "$mla_endpoint" --seconds 1 \
    --curve-keys "$dir/keys/alice" --payload inline >"$dir/survive.log" || mla_fail 1 "mla-survive"
"$mla_bin/mla-bench" run --endpoint "$mla_endpoint" --curve-keys "$dir/keys" --repeat 20 --opens 2 \
    --warm-up 0 --context 64 --rows 2 --payload inline >"$dir/run.log" || mla_fail 1 "mla-bench run"

# left_out SECONDS OPTION...: a client with these is not served.
left_out() {
    local code=0 seconds=$1
    shift
    timeout "$seconds" "$mla_bin/mla-soak" --endpoint "$mla_endpoint" --runs 1 "$@" \
        >"$dir/left_out.out" 2>"$dir/left_out.log" || code=$?
    ((code == 7 || code == 124)) || mla_fail 1 "exit code $code from a client with: $*"
    [[ ! -s $dir/left_out.out ]] || mla_fail 1 "it was served with: $*"
}
begin=$SECONDS
left_out 10 --curve-keys "$dir/stranger"
grep -q 'does not allow this key' "$dir/left_out.log" || mla_fail 1 "the stranger isn't told"
((SECONDS - begin <= 2)) || mla_fail 1 "the stranger was told after $((SECONDS - begin)) s"
left_out 1 --curve-keys "$dir/others"
left_out 1
soak --curve-keys "$dir/keys"
mla_stop
mla_nothing_left
