# shellcheck shell=bash
# What the scripts of deploy/ and tests/ share. To be sourced.

mla_root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
# A package has its programs beside deploy, a source tree in a build folder.
mla_bin=$mla_root/bin
[[ -d $mla_bin ]] || mla_bin=$mla_root/build/release/bin
mla_bin=${MLA_BIN:-$mla_bin}

# mla_fail CODE SENTENCE
mla_fail() {
    echo "${0##*/}: $2" >&2
    exit "$1"
}

# mla_host_environment NETWORK: what ranks need to know of the host they are on. NCCL asks for an
# interface by its name, and the same network has other names on other hosts. NETWORK - is unknown.
mla_host_environment() {
    local name
    # PMIx otherwise warns of shared memory it could not map in some containers.
    export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}
    [[ $1 != - && -z ${NCCL_SOCKET_IFNAME:-} ]] || return 0
    read -r _ name _ < <(ip -o -4 addr show up to "$1") || return 0
    export NCCL_SOCKET_IFNAME="=$name"
}

# Process ids of the sessions whose leaders are given. mpirun puts every rank into a process group
# of its own but leaves it in the session, so a session finds all that mpirun started, also after
# mpirun has died. /proc, because ps and pkill are not everywhere.
mla_session_pids() {
    local file stat leader
    for file in /proc/[0-9]*/stat; do
        { read -r stat <"$file"; } 2>/dev/null || continue
        # pid (name) state parent group session ...
        [[ $stat =~ ^([0-9]+)' '.*')'' '([^Z])' '[0-9]+' '[0-9]+' '([0-9]+)' ' ]] || continue
        for leader; do
            if [[ ${BASH_REMATCH[1]} == "$leader" || ${BASH_REMATCH[3]} == "$leader" ]]; then
                echo "${BASH_REMATCH[1]}"
            fi
        done
    done
}

# mla_session_wait GRACE_S LEADER...: waits so long for the sessions to become empty.
mla_session_wait() {
    local deadline=$((SECONDS + $1))
    shift
    while [[ -n $(mla_session_pids "$@") ]]; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# mla_session_kill SIGNAL LEADER...
mla_session_kill() {
    local signal=$1 pids
    shift
    mapfile -t pids < <(mla_session_pids "$@")
    kill -s "$signal" "${pids[@]}" 2>/dev/null || true
}

# mla_model CONFIG LAYERS DIR: makes a synthetic checkpoint, once. Several may ask at the same
# time; a folder that exists is complete.
mla_model() {
    local config=$1 layers=$2 dir=$3
    mkdir -p "$(dirname "$dir")"
    (
        flock 9
        if [[ -d $dir && ! $mla_bin/mla-synth -nt $dir ]] && cmp -s "$config" "$dir/config.json"
        then
            exit 0
        fi
        rm -rf "$dir" "$dir.part"
        "$mla_bin/mla-synth" --config "$config" --layers "$layers" --out "$dir.part"
        mv "$dir.part" "$dir"
    ) 9>"$dir.lock"
}

# mla_start DIR TIMEOUT_S OPTION...: runs mla-serve in the background and waits until it is ready;
# mla_serve is its process id, mla_endpoint where it listens. Sockets, logs and temporary files are
# in DIR. On failure the status is mla-serve's, or 7 when it did not become ready in time.
mla_start() {
    local dir=$1 timeout_s=$2
    shift 2
    mla_serve='' mla_endpoint=''
    mkfifo "$dir/serve.out"
    # Without its parent mla-serve ends itself.
    TMPDIR=$dir setpriv --pdeathsig TERM -- "$mla_root/deploy/mla-serve" --log-dir "$dir" "$@" \
        </dev/null >"$dir/serve.out" &
    mla_serve=$!
    # shellcheck disable=SC2034 # the caller reads mla_endpoint
    if read -r -t "$timeout_s" _ mla_endpoint <"$dir/serve.out"; then
        return 0
    fi
    if kill -0 "$mla_serve" 2>/dev/null; then
        echo "mla-serve was not ready within $timeout_s s" >&2
        mla_stop
        return 7
    fi
    mla_stop
}

# Ends what mla_start started, if it still runs. The status is mla-serve's.
mla_stop() {
    local pid=${mla_serve:-}
    [[ -n $pid ]] || return 0
    mla_serve=''
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid"
}
