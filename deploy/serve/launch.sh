# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # a part of mla-serve, which has the rest
# The commands that mla-serve runs, and the environment that they get. What the environment sets
# already stays. To be sourced by mla-serve.

# ---- Environment

environment() {
    choose_forwarded # what is found out below is of this host
    mla_host_environment "${network:--}"
    export OMPI_MCA_pml=${OMPI_MCA_pml:-ob1}
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    if [[ $spread ]]; then environment_of_hosts; else environment_here; fi
}

# One host: ranks talk through shared memory, and mpirun's own channel stays on the loopback.
own_backing=''
environment_here() {
    local ranks=$((own[--ranks] * own[--groups])) cores threads
    cores=$(nproc)
    threads=$((cores > ranks ? cores / ranks : 1))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-$OMP_NUM_THREADS}
    export OMPI_MCA_btl=${OMPI_MCA_btl:-self,vader}
    [[ -n ${OMPI_MCA_btl_vader_backing_directory:-} ]] || own_backing=yes
    export OMPI_MCA_oob_tcp_if_include=${OMPI_MCA_oob_tcp_if_include:-lo}
    # A rank that looks for its next message would take the core of another.
    if ((ranks > cores)); then
        worker_options=(--poll-us 0 "${worker_options[@]}")
    fi
    if ((ranks >= cores)); then
        export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
    fi
}

# Several hosts: tcp between them, on their common network. Interfaces are named by their network,
# because the same one has another name on each host.
environment_of_hosts() {
    export OMPI_MCA_btl=${OMPI_MCA_btl:-self,vader,tcp}
    [[ -n ${OMPI_MCA_btl_vader_backing_directory:-} ]] || own_backing=yes
    if [[ $network ]]; then
        [[ ${OMPI_MCA_btl_tcp_if_exclude:-} ]] ||
            export OMPI_MCA_btl_tcp_if_include=${OMPI_MCA_btl_tcp_if_include:-$network}
        [[ ${OMPI_MCA_oob_tcp_if_exclude:-} ]] ||
            export OMPI_MCA_oob_tcp_if_include=${OMPI_MCA_oob_tcp_if_include:-$network}
    fi
    # Only we need a key for the hosts, and a host that doesn't answer is given up soon.
    export OMPI_MCA_plm_rsh_no_tree_spawn=${OMPI_MCA_plm_rsh_no_tree_spawn:-1}
    export OMPI_MCA_plm_rsh_args=${OMPI_MCA_plm_rsh_args:-"-o BatchMode=yes -o ConnectTimeout=5"}
    # mla-host stays with what it starts, and so does the ssh that started it.
    export OMPI_MCA_orte_leave_session_attached=1
    # In a Slurm allocation srun starts the daemons, and a group's would wait for another's to end.
    export SLURM_OVERLAP=${SLURM_OVERLAP:-1}
    # A daemon that lost mpirun ends its ranks: soon, also when nothing tells it.
    export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-5}
    export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-2}
    export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}
}

# Variables that ranks on other hosts get from here; Open MPI hands over its own by itself.
forwarded=''
choose_forwarded() {
    forwarded=$(compgen -e | grep -E '^(NCCL|UCX|OMP|OPENBLAS|PMIX_MCA)_|^LD_LIBRARY_PATH$' |
        paste -sd ';' || true)
}

# ---- Cores

# The processors that we may use, in `cpus`.
list_cpus() {
    local part
    cpus=()
    while read -r part; do
        mapfile -t -O "${#cpus[@]}" cpus < <(seq "${part%-*}" "${part#*-}")
    done < <(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n')
}

# A RUN goes through some ten threads one after the other. On one processor each hands over to the
# next within a microsecond or two; waking another processor takes ten times that. The coordinator
# is with the last rank: what it sends to that one is the last it sends. Not with --spin: of threads
# that never sleep no two should be on one processor.
choose_binding() {
    bound=''
    list_cpus
    if [[ -z $spread && ${own[--bind]} == auto && ${OMP_NUM_THREADS:-1} == 1 ]] &&
        ! has_option --spin "${coordinator_options[@]}" &&
        ((own[--ranks] * own[--groups] == ${#cpus[@]} && ${#cpus[@]} > 1)) &&
        ! has_option --threads "${worker_options[@]}"; then
        bound=yes
    fi
}

# The processors of a group's ranks.
cpus_of_group() {
    local IFS=,
    echo "${cpus[*]:$1 * own[--ranks]:own[--ranks]}"
}

# ---- Commands, in `command`

coordinator_command() {
    command=(${bound:+taskset -c "${cpus[-1]}"} "$mla_bin/mla-coordinator"
        --groups "${own[--groups]}" "${coordinator_options[@]}" --workers "$workers_endpoint"
        ${endpoint:+--endpoint "$endpoint"})
}

# A wildcard is where the coordinator listens, not where ranks find it.
endpoint_for_ranks() {
    case $workers_endpoint in
    'tcp://*:'* | tcp://0.0.0.0:*) echo "tcp://${address:-127.0.0.1}:${workers_endpoint##*:}" ;;
    *) echo "$workers_endpoint" ;;
    esac
}

# group_command GROUP NAME: NAME is of the folders that it has on each host, no other run's.
group_command() {
    local group=$1 name=$2 entry host ranks first separator='' mpirun=mpirun
    # By its whole path, mpirun looks for its daemon in the same place on each host.
    [[ ! $spread ]] || mpirun=$(command -v mpirun) || mla_fail 1 "there is no mpirun"
    command=()
    [[ -z $own_backing ]] ||
        command+=(env OMPI_MCA_btl_vader_backing_directory="/dev/shm/$name")
    # A rank's death ends its job at once: survivors would wait for it for ever.
    command+=("$mpirun" --quiet --mca odls_base_sigkill_timeout 0)
    if [[ $spread ]]; then
        [[ ! $forwarded ]] || command+=(--mca mca_base_env_list "$forwarded")
        command+=(--bind-to none
            --mca orte_launch_agent "$mla_root/deploy/mla-host $name ${network:--} orted")
    elif [[ $bound ]]; then
        command+=(--oversubscribe --bind-to cpu-list:ordered
            --cpu-list "$(cpus_of_group "$group")")
    else
        command+=(--oversubscribe --bind-to none)
    fi
    for entry in ${placements[group]}; do
        IFS=: read -r host ranks first <<<"$entry"
        command+=(${separator:+"$separator"} -n "$ranks" ${spread:+--host "$host:$ranks"}
            "$mla_bin/mla-worker" --coordinator "$(endpoint_for_ranks)" --group "$group"
            --device "$first" "${worker_options[@]}")
        separator=:
    done
}

# What would be run, for --dry-run: lines for a shell.
show_commands() {
    local command group name
    while read -r name; do
        show export "$name=${!name}"
    done < <(compgen -e | grep -E '^(OMPI|PMIX|OMP|OPENBLAS|NCCL|UCX)_')
    coordinator_command
    show "${command[@]}"
    for ((group = 0; group < own[--groups]; group++)); do
        group_command "$group" "mla-serve.XXXXXX.group-$group.1"
        show "${command[@]}"
    done
}

show() {
    local word line=''
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@+-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    echo "${line# }"
}
