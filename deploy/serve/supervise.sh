# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # a part of mla-serve, which has the rest
# The coordinator and one mpirun for each group: started, looked after, started again, ended. To be
# sourced by mla-serve.

pause_first_ms=200 # between the second end and the next start
well_ms=30000      # lives so long, and the next end is the first again
back_ms=1000       # in which a group that was cut off comes back

# Our children, by name. Each leads a session of its own, and ends itself without us.
declare -A pids=()
# Of each: when it was started, when it may be started again, how long the next pause is, and
# whether it has ever been of use (ready, or for the coordinator: bound).
declare -A started_ms=() due_ms=() pause_ms=() proved=()
# A group that was lost: killed then, unless it is back.
declare -A kill_ms=()
# How often each group was started.
starts=()

now_ms() {
    printf -v now '%s' "${EPOCHREALTIME//[^0-9]/}"
    now=$((now / 1000))
}

say() {
    echo "mla-serve: $1" >&2
}

# launch NAME OUT COMMAND...: stderr is added to NAME.log.
launch() {
    local name=$1 out=$2
    shift 2
    setsid setpriv --pdeathsig TERM -- "$@" </dev/null >"$out" 2>>"$log_dir/$name.log" &
    pids[$name]=$!
    now_ms
    started_ms[$name]=$now
}

# ---- Starting

# Also again: on the endpoints that it had, which workers and clients know.
start_coordinator() {
    local command
    rm -rf "$dir/run"/mla-regions.*
    coordinator_command
    # Its socket for shared memory goes with the folder, however it ends.
    TMPDIR=$dir/run launch coordinator "$dir/run/coordinator.out" "${command[@]}"
}

# start_group G: with nothing of an earlier run of it. Several mpiruns in one folder disturb each
# other while they start and end, and what an earlier one left on other hosts may still be ending.
start_group() {
    local group=$1 command name
    rm -rf "$dir/run/group-$group" "$shared.group-$group".*
    starts[group]=$((${starts[group]:-0} + 1))
    name=${dir##*/}.group-$group.${starts[group]}
    mkdir "$dir/run/group-$group"
    mkdir -m 700 "/dev/shm/$name"
    group_command "$group" "$name"
    TMPDIR=$dir/run/group-$group launch "group-$group" /dev/null "${command[@]}"
}

# ---- Ending

# The coordinator tells its workers to end, so it gets the signal first. It can't tell those that
# are still loading.
stop() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    if ((${#pids[@]})); then
        if [[ -n ${pids[coordinator]:-} ]] && kill -TERM "${pids[coordinator]}" 2>/dev/null &&
            mla_session_wait 5 "${pids[coordinator]}"; then
            mla_session_wait 2 "${pids[@]}" || true
        fi
        # Not the whole sessions: ssh and srun would cut off what is still cleaning up over there.
        kill -TERM "${pids[@]}" 2>/dev/null || true
        mla_session_wait 3 "${pids[@]}" || mla_session_kill KILL "${pids[@]}"
        wait
    fi
    rm -rf "$shared".group-* "$dir/run"
    if ((code)) && [[ $log_dir == "$dir" ]]; then
        say "the logs are in $dir"
    else
        rm -rf "$dir"
    fi
    exit "$code"
}

# give_up NAME CODE: it won't do, so we end.
give_up() {
    say "$1 ended with code $2; the end of its log:"
    tail -n 8 "$log_dir/$1.log" >&2
    exit "$2"
}

# ---- Looking after them

# What the coordinator says (its --help).
hear() {
    local word=$1 first=$2 second=$3
    case $word in
    bound)
        [[ ${proved[coordinator]:-} ]] ||
            say "coordinator on $(uname -n): clients at $second, ranks at $first"
        workers_endpoint=$first endpoint=$second
        proved[coordinator]=yes
        ;;
    ready)
        [[ -n $announced ]] || echo "ready $first"
        announced=yes
        for name in "${!pids[@]}"; do proved[$name]=yes; done
        ;;
    joined)
        unset "kill_ms[group-$first]"
        ;;
    lost)
        now_ms
        # A rank that was cut off comes back by itself, one that hangs never does.
        kill_ms[group-$first]=$now
        [[ $second == hung ]] || kill_ms[group-$first]=$((now + back_ms))
        ;;
    esac
}

# Whether a child that ended with this code may be started again. Nobody is helped by trying a
# wrong option or checkpoint for ever, but what has worked once may work again.
is_final() {
    local name=$1 code=$2
    [[ $name != coordinator || $code != 0 ]] || return 0
    [[ -z ${proved[$name]:-} ]] && ((code >= 1 && code <= 6))
}

# A child ended: what is left of it ends, too, and it is started again after a pause that doubles
# each time until it has been well for a while.
ended() {
    local name=$1 code=$2
    ! is_final "$name" "$code" || {
        ((code == 0)) || give_up "$name" "$code"
        exit 0
    }
    mla_session_kill KILL "${pids[$name]}"
    unset "pids[$name]" "kill_ms[$name]"
    now_ms
    if ((now - started_ms[$name] > well_ms)); then
        pause_ms[$name]=0
    fi
    due_ms[$name]=$((now + ${pause_ms[$name]:-0}))
    pause_ms[$name]=$((${pause_ms[$name]:-0} * 2))
    ((pause_ms[$name] >= pause_first_ms)) || pause_ms[$name]=$pause_first_ms
    ((pause_ms[$name] <= own[--back-off-ms])) || pause_ms[$name]=${own[--back-off-ms]}
    say "$name ended with code $code: started again in $((due_ms[$name] - now)) ms"
    [[ ${proved[$name]:-} ]] || say "its log ends: $(tail -n 1 "$log_dir/$name.log")"
}

# Looks after everything once.
look() {
    local name code
    now_ms
    # The coordinator first: groups end because it does.
    for name in coordinator "${groups[@]}"; do
        if [[ -z ${pids[$name]:-} ]]; then
            ((now >= due_ms[$name])) || continue
            if [[ $name == coordinator ]]; then
                start_coordinator
            else
                start_group "${name#group-}"
            fi
        elif ! kill -0 "${pids[$name]}" 2>/dev/null; then
            code=0
            wait "${pids[$name]}" 2>/dev/null || code=$?
            ended "$name" "$code"
        elif [[ -n ${kill_ms[$name]:-} ]] && ((now >= kill_ms[$name])); then
            mla_session_kill KILL "${pids[$name]}"
            unset "kill_ms[$name]"
        fi
    done
}

# Until the end; `ending` is set by signals.
supervise() {
    local piece line='' word first second
    while [[ -z $ending ]]; do
        # At its timeout read may have a part of a line, which is not in the pipe any more.
        if IFS= read -r -t 0.1 piece <&"$out"; then
            read -r word first second <<<"$line$piece"
            line=''
            hear "$word" "$first" "$second"
        else
            line+=$piece
        fi
        # Nothing is loaded for a coordinator that can't have its ports.
        if [[ -n ${proved[coordinator]:-} ]] || ! kill -0 "${pids[coordinator]}" 2>/dev/null; then
            look
        fi
    done
}
