# shellcheck shell=bash
# What the drivers share: a folder for each run, and what must hold at its end. To be sourced.
# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"

dir=$(mktemp -d "${TMPDIR:-/tmp}/mla-test.XXXXXX")

finish() {
    local code=$? service
    mla_stop || true
    if ((code)); then
        tail -n 30 "$dir"/*.log 2>/dev/null || true
    fi
    # A service that was killed leaves its shared memory, in a folder of the same name.
    for service in "$dir"/mla-serve.*; do
        rm -rf "/dev/shm/${service##*/}".*
    done
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT
trap 'exit 1' INT TERM

# mla_case_model CASE: the folder of its synthetic checkpoint, beside the programs.
mla_case_model() {
    local case_dir=$mla_root/tests/golden/$1 models layers
    models=$(dirname "$mla_bin")/models
    layers=$(tr -d ' \n' <"$case_dir/case.json" | sed 's/.*"layers":\[\([0-9,]*\)\].*/\1/')
    mla_model "$case_dir/config.json" "$layers" "$models/$1" >&2
    echo "$models/$1"
}

# mla_pids PATTERN: process ids of this run whose command line matches. Every process of a run has
# its folder's name among its arguments.
mla_pids() {
    local file
    while read -r file; do
        if { tr '\0' ' ' <"$file" | grep -qE "$1"; } 2>/dev/null; then
            basename "$(dirname "$file")"
        fi
    done < <(grep -alF -f <(echo "$dir") /proc/[0-9]*/cmdline 2>/dev/null)
}

# mla_within SECONDS COMMAND...: tries it until it succeeds; fails after so long.
mla_within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || mla_fail 1 "in vain: $*"
        sleep 0.02
    done
}

# mla_gone SECONDS: fails when something of this run is still there after so long.
mla_gone() {
    local deadline=$((SECONDS + $1))
    while [[ -n $(mla_pids .) ]]; do
        ((SECONDS < deadline)) || mla_fail 1 "still running: $(mla_pids .)"
        sleep 0.1
    done
}

# Sanitizers report to the logs.
mla_nothing_left() {
    local left
    left=$(mla_pids .)
    [[ -z $left ]] || mla_fail 1 "still running: $left"
    ! grep -hE '(ERROR|WARNING): [A-Za-z]*Sanitizer|runtime error:' "$dir"/*.log ||
        mla_fail 1 "a sanitizer reported an error"
}

# mla_metrics_port LOG: where the page is, once the log says so.
mla_metrics_port() {
    local port='' deadline=$((SECONDS + 10))
    until port=$(sed -n 's,^metrics at http://127.0.0.1:\([0-9]*\)/metrics$,\1,p' "$1") &&
        [[ $port ]]; do
        ((SECONDS < deadline)) || mla_fail 1 "no metrics in $1"
        sleep 0.05
    done
    echo "$port"
}

# mla_get PORT PATH: the answer's first line, then its body.
mla_get() {
    local fd line
    exec {fd}<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&"$fd"
    IFS=$'\r' read -r line _ <&"$fd"
    echo "${line%$'\r'}"
    while IFS= read -r line <&"$fd" && [[ $line != $'\r' ]]; do :; done
    cat <&"$fd"
    exec {fd}<&-
}
