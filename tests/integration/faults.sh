#!/usr/bin/env bash
# faults.sh [--times N] [--out FILE] [FAULT...]: makes faults in a service under load, N times each
# (1), checks what a client sees and what comes back, and prints how long it took: lines of
# "FAULT WHAT MS". All faults by default.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tests/integration/survivor.sh
source "$(dirname "${BASH_SOURCE[0]}")/survivor.sh"

times=1
exec {results}>&1
while [[ ${1:-} == --* ]]; do
    case $1 in
    --times) times=$2 ;;
    --out) exec {results}>>"$2" ;;
    *) mla_fail 2 "unknown option $1" ;;
    esac
    shift 2
done
case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
deadline_ms=2000

# bound_ms FAULT WHAT: the bound of the table in tests/RELIABILITY.md. Other work on the machine
# and sanitizers may take their share of time in CI: MLA_SLOW is added.
bound_ms() {
    case $1-$2 in
    killed-*-error) echo 500 ;;
    killed-*-ready | loading-ready) echo 3000 ;;
    stopped-*-ready) echo 4000 ;;
    unloaded-ready) echo 6000 ;;
    hung-error) echo $((deadline_ms + 500)) ;;
    hung-ready) echo $((deadline_ms + 1000)) ;;
    cut-*) echo 2000 ;;
    coordinator-ready) echo 3000 ;;
    mpirun-gone) echo 2000 ;;
    *) echo 3000 ;;
    esac
}

# measured FAULT WHAT FROM_NS TO_NS
measured() {
    local ms=$((($4 - $3) / 1000000)) bound
    bound=$(($(bound_ms "$1" "$2") + ${MLA_SLOW:-0}))
    echo "$1 $2 $ms" >&"$results"
    ((ms <= bound)) || mla_fail 1 "$1: $2 after $ms ms, $bound are allowed"
}

# ---- A client

client_start() {
    survivor "$mla_bin/mla-survive" "$case_dir" --endpoint "$mla_endpoint" --seconds 600
    sleep 0.2 # in the middle of things
}

# outage FAULT SINCE: the client's next error, and its next result after that.
outage() {
    local error
    mla_within 60 has_after "$2" bad
    error=$(after "$2" bad)
    mla_within 60 has_after "$error" good
    measured "$1" error "$2" "$error"
    measured "$1" ready "$2" "$(after "$error" good)"
}

# ---- The service

serve() {
    rm -f "$dir/serve.out" "$dir"/*.log
    mla_start "$dir" 60 --model "$model" --ranks 2 --endpoint "ipc://$dir/clients" \
        --back-off-ms 0 "$@" 2>"$dir/serve.log"
}

unserve() {
    mla_stop
    mla_nothing_left
}

# rank N: its process.
rank() {
    local pid
    while read -r pid; do
        # No pipe: what writes to a grep that has found its line may fail.
        if grep -qzx "OMPI_COMM_WORLD_RANK=$1" "/proc/$pid/environ" 2>/dev/null; then
            echo "$pid"
            return 0
        fi
    done < <(mla_pids '^[^ ]*/mla-worker')
    return 1
}

# Until the client has had results for a while, from both ranks.
is_steady() {
    local last
    last=$(tail -n 1 "$dir/client.log")
    [[ $last == *' good' ]] && rank 0 >/dev/null && rank 1 >/dev/null && sleep 0.3 &&
        [[ $(tail -n 1 "$dir/client.log") == "$last" ]]
}
steady() {
    mla_within 60 is_steady
}

loads() {
    grep -c '^loaded layer' "$dir/group-0.log"
}

# ---- Faults

# A rank is killed under load.
killed() {
    local since pid
    pid=$(rank "$1")
    since=$(now_ns)
    kill -KILL "$pid"
    outage "killed-$1" "$since"
}
fault_killed-0() { killed 0; }
fault_killed-1() { killed 1; }

# A rank is killed while nobody wants anything; a client comes then.
fault_idle() {
    local since pid
    pid=$(rank 1)
    client_stop
    since=$(now_ns)
    kill -KILL "$pid"
    client_start
    measured killed-idle ready "$since" "$(after "$since" good)"
}

# A rank is killed, and a successor while it loads.
fault_loading() {
    local old since gone
    old=$(mla_pids '^[^ ]*/mla-worker' | sort)
    kill -KILL "$(rank 0)"
    mla_within 10 has_started "$old"
    since=$(now_ns)
    kill -KILL "$started"
    mla_within 10 are_gone "$started"
    gone=$(now_ns) # a result before that may be its own
    mla_within 60 has_after "$gone" good
    measured loading ready "$since" "$(after "$gone" good)"
}
has_started() {
    read -r started < <(comm -13 <(echo "$1") <(mla_pids '^[^ ]*/mla-worker' | sort))
}

# A rank stops: no signal ends it but KILL, and its connections stay.
stopped() {
    local since pid
    pid=$(rank "$1")
    since=$(now_ns)
    kill -STOP "$pid"
    outage "stopped-$1" "$since"
}
fault_stopped-0() { stopped 0; }
fault_stopped-1() { stopped 1; }

fault_mpirun() {
    local since leader
    read -r leader < <(mla_pids '^mpirun ')
    mapfile -t old < <(mla_pids '^[^ ]*/mla-worker')
    since=$(now_ns)
    kill -KILL "$leader"
    mla_within 10 are_gone "${old[@]}"
    measured mpirun gone "$since" "$(now_ns)"
    outage mpirun "$since"
}
# Same processes, and no weights are loaded again.
fault_coordinator() {
    local since pid workers loaded
    workers=$(mla_pids '^[^ ]*/mla-worker' | sort)
    loaded=$(loads)
    read -r pid < <(mla_pids '^[^ ]*/mla-coordinator')
    since=$(now_ns)
    kill -KILL "$pid"
    outage coordinator "$since"
    [[ $(mla_pids '^[^ ]*/mla-worker' | sort) == "$workers" ]] || mla_fail 1 "other workers serve"
    [[ $(loads) == "$loaded" ]] || mla_fail 1 "weights were loaded again"
}

# Heartbeats are ignored, so only the deadline finds a rank that stopped: the other one beats and
# does not move.
fault_hung() {
    local since pid
    pid=$(rank 1)
    since=$(now_ns)
    kill -STOP "$pid"
    outage hung "$since"
}

# ---- A rank that stops while it loads

log_count() {
    grep -c -- "$1" "$dir/$2.log" || true
}
# counted PATTERN LOG N: there are more than N such lines.
counted() {
    (($(log_count "$1" "$2") > $3))
}
found='stopped before it was adopted'
is_found_or_served() {
    counted "$found" coordinator "$1" || counted ' is ready: ' coordinator "$2"
}

# From a checkpoint that takes a while. A rank that had loaded all of it by then is found by its
# heartbeats, which is not what is wanted here.
fault_unloaded() {
    local since pid finds layers served tries
    for ((tries = 0; tries < 10; tries++)); do
        finds=$(log_count "$found" coordinator)
        layers=$(log_count '^loaded layer 1 ' group-0)
        served=$(log_count ' is ready: ' coordinator)
        kill -KILL "$(rank 0)"
        mla_within 60 counted '^loaded layer 1 ' group-0 "$layers"
        if ! { pid=$(rank 1) && kill -STOP "$pid"; }; then
            continue
        fi
        since=$(now_ns)
        mla_within 60 is_found_or_served "$finds" "$served"
        if counted "$found" coordinator "$finds"; then
            measured unloaded found "$since" "$(now_ns)"
            mla_within 60 counted ' is ready: ' coordinator "$served"
            measured unloaded ready "$since" "$(now_ns)"
            return 0
        fi
        mla_within 60 counted ' is ready: ' coordinator "$((served + 1))"
    done
    mla_fail 1 "no rank could be stopped while it loads"
}

unloaded_service() {
    local i
    mla_model "$mla_root/tests/golden/v2-lite/config.json" 1-12 "$dir/deep" 2>/dev/null
    model=$dir/deep serve
    for ((i = 0; i < times; i++)); do
        fault_unloaded
    done
    unserve
    rm -rf "$dir/deep"
}

# ---- A cut, between a coordinator and workers that nobody restarts

fault_cut() {
    local since loaded workers since_lost word=''
    loaded=$(loads)
    workers=$(mla_pids '^[^ ]*/mla-worker' | sort)
    since=$(now_ns)
    kill -USR1 "$proxy"
    until [[ $word == lost ]]; do read -r -t 10 word _ <&"$said"; done
    since_lost=$(now_ns)
    measured cut fenced "$since" "$since_lost"
    mla_within 10 has_said_gone $((2 * (cuts + 1)))
    measured cut dropped "$since" "$(now_ns)"
    since=$(now_ns)
    kill -USR2 "$proxy"
    mla_within 60 has_after "$since" good
    measured cut ready "$since" "$(after "$since" good)"
    cuts=$((cuts + 1))
    [[ $(mla_pids '^[^ ]*/mla-worker' | sort) == "$workers" ]] || mla_fail 1 "other workers serve"
    [[ $(loads) == "$loaded" ]] || mla_fail 1 "weights were loaded again"
    until [[ $word == joined ]]; do read -r -t 10 word _ <&"$said"; done
}
has_said_gone() {
    [[ $(grep -c 'the coordinator is gone' "$dir/group-0.log") == "$1" ]]
}

cut_service() {
    local i word=''
    rm -f "$dir"/*.log "$dir/said" "$dir/workers" "$dir/via"
    cuts=0
    mkfifo "$dir/said"
    setpriv --pdeathsig KILL "$mla_bin/mla-coordinator" --endpoint "ipc://$dir/clients" \
        --workers "ipc://$dir/workers" --payload inline \
        >"$dir/said" 2>"$dir/coordinator.log" &
    coordinator=$!
    exec {said}<"$dir/said"
    until [[ $word == bound ]]; do read -r -t 10 word _ <&"$said"; done
    setpriv --pdeathsig KILL "$mla_bin/proxy" "$dir/via" "$dir/workers" &
    proxy=$!
    mkdir -p "$dir/mpi"
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader OMPI_MCA_oob_tcp_if_include=lo PMIX_MCA_gds=hash \
        OMPI_MCA_btl_vader_backing_directory=$dir/mpi OMPI_MCA_mpi_yield_when_idle=1 \
        OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        setpriv --pdeathsig TERM mpirun --quiet -n 2 --oversubscribe --bind-to none \
        --mca odls_base_sigkill_timeout 0 --mca orte_tmpdir_base "$dir/mpi" \
        "$mla_bin/mla-worker" --coordinator "ipc://$dir/via" --model "$model" --poll-us 0 \
        >/dev/null 2>"$dir/group-0.log" &
    job=$!
    until [[ $word == ready ]]; do read -r -t 30 word mla_endpoint <&"$said"; done
    client_start
    for ((i = 0; i < times; i++)); do
        steady
        fault_cut
    done
    client_stop
    kill -TERM "$coordinator"
    wait "$coordinator" "$job" || mla_fail 1 "an orderly end failed"
    kill -TERM "$proxy"
    wait "$proxy" 2>/dev/null || true
    exec {said}<&-
    mla_nothing_left
}

# ---- All of it

wanted=("$@")
wants() {
    ((${#wanted[@]} == 0)) || [[ " ${wanted[*]} " == *" $1 "* ]]
}

faults=()
for fault in killed-0 killed-1 idle loading stopped-0 stopped-1 mpirun coordinator; do
    ! wants "$fault" || faults+=("$fault")
done
if ((${#faults[@]})); then
    serve
    client_start
    for fault in "${faults[@]}"; do
        for ((i = 0; i < times; i++)); do
            steady
            "fault_$fault"
        done
    done
    client_stop
    unserve
fi
if wants hung; then
    serve --heartbeat-timeout-ms 60000 --run-timeout-ms "$deadline_ms"
    client_start
    for ((i = 0; i < times; i++)); do
        steady
        fault_hung
    done
    client_stop
    grep -q '^DEADLINE: ' "$dir/client.log" || mla_fail 1 "no RUN was answered with DEADLINE"
    unserve
fi
! wants unloaded || unloaded_service
! wants cut || cut_service
