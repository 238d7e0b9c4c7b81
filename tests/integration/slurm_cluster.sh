# shellcheck shell=bash
# A Slurm cluster on this machine: a controller, and nodes that have their own address, name,
# processes, /dev/shm and DIR/local; all else they share. To be sourced by a script that runs in
# cluster_namespaces, with which everything ends that it started, whatever happens.

# cluster_missing: why there can't be a cluster here; nothing when there can.
cluster_missing() {
    local program
    ((EUID == 0)) || echo "only root can make namespaces"
    for program in slurmctld slurmd sbatch munged unshare ip; do
        PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || echo "there is no $program"
    done
}

# cluster_namespaces SCRIPT ARGUMENT...: goes on with it, as the first process of a world that
# nobody else sees.
cluster_namespaces() {
    exec unshare --mount --net --uts --pid --fork --kill-child=KILL --mount-proc -- "$@"
}

declare -A cluster_inits=() # of each node: the parent of its first process

# cluster_start DIR NODES CPUS GPUS: node1 and so on, each with so many processors (they are not
# real ones, but how many tasks Slurm takes) and devices that stand for GPUs.
cluster_start() {
    local i
    cluster_dir=$1/slurm cluster_local=$1/local cluster_nodes=$2
    export SLURM_CONF=$cluster_dir/slurm.conf PATH=$PATH:/usr/sbin
    mkdir -p "$cluster_dir/state" "$cluster_local"
    hostname head
    cluster_write_hosts
    cluster_write_conf "$3" "$4"
    mount -t tmpfs none /run # names of network namespaces
    ip link set lo up
    ip link add bridge0 type bridge
    ip addr add 10.77.0.1/24 dev bridge0
    ip link set bridge0 up
    head -c 64 /dev/urandom >"$cluster_dir/munge.key"
    chmod 600 "$cluster_dir/munge.key"
    munged --force --socket "$cluster_dir/munge.socket" --key-file "$cluster_dir/munge.key" \
        --pid-file "$cluster_dir/munge.pid" --seed-file "$cluster_dir/munge.seed" \
        --log-file "$cluster_dir/munge.log" 2>"$cluster_dir/munge.err"
    slurmctld -D -f "$SLURM_CONF" >/dev/null 2>&1 &
    for ((i = 1; i <= cluster_nodes; i++)); do
        cluster_start_node "$i"
    done
}

cluster_write_hosts() {
    local i
    {
        echo "127.0.0.1 localhost"
        echo "10.77.0.1 head"
        for ((i = 1; i <= cluster_nodes; i++)); do echo "10.77.0.$((10 + i)) node$i"; done
    } >"$cluster_dir/hosts"
    mount --bind "$cluster_dir/hosts" /etc/hosts
}

# A job goes back into the queue for cred_expire seconds. Nothing here needs cgroups: with v1 named
# and none of it mounted, slurmd does without.
cluster_write_conf() {
    local cpus=$1 gpus=$2 i
    cat >"$SLURM_CONF" <<END
ClusterName=mla
SlurmctldHost=head(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$cluster_dir/munge.socket,cred_expire=5
StateSaveLocation=$cluster_dir/state
SlurmdSpoolDir=$cluster_local/spool
SlurmctldPidFile=$cluster_dir/slurmctld.pid
SlurmdPidFile=$cluster_local/spool/slurmd.pid
SlurmctldLogFile=$cluster_dir/slurmctld.log
SlurmdLogFile=$cluster_dir/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog=$cluster_dir/prolog
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
KillWait=10
GresTypes=gpu
NodeName=node[1-$cluster_nodes] NodeAddr=10.77.0.[11-$((10 + cluster_nodes))] CPUs=$cpus Gres=gpu:$gpus
PartitionName=all Nodes=ALL Default=YES
END
    printf '#!/bin/sh\necho export TMPDIR=%s\n' "$cluster_local" >"$cluster_dir/prolog"
    chmod +x "$cluster_dir/prolog"
    for ((i = 0; i < gpus; i++)); do
        mknod "$cluster_dir/gpu$i" c 1 3 # another /dev/null
    done
    echo "Name=gpu File=$cluster_dir/gpu[0-$((gpus - 1))]" >"$cluster_dir/gres.conf"
    echo "CgroupPlugin=cgroup/v1" >"$cluster_dir/cgroup.conf"
}

cluster_start_node() {
    local name=node$1
    ip netns add "$name"
    ip link add "to-$name" type veth peer name eth0 netns "$name"
    ip link set "to-$name" master bridge0 up
    ip -n "$name" addr add "10.77.0.$((10 + $1))/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
    # Its first process is a shell, for somebody has to wait for orphans.
    # shellcheck disable=SC2016
    nsenter "--net=/run/netns/$name" \
        unshare --mount --uts --pid --fork --kill-child=KILL --mount-proc -- bash -c '
            hostname "$1"
            mount -t tmpfs none /dev/shm
            mount -t tmpfs none "$2"
            mkdir "$2/spool"
            slurmd -D -N "$1" &
            wait' node "$name" "$cluster_local" >/dev/null 2>&1 &
    cluster_inits[$name]=$!
}

# cluster_idle: whether no node has anything to do.
cluster_idle() {
    [[ $(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l) == "$cluster_nodes" ]]
}

# cluster_command PID: its command line.
cluster_command() {
    { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true
}

# cluster_pids NODE: all of its processes but those that make it a node, as numbers here.
cluster_pids() {
    local world process pid
    world="net:[$(stat -L -c %i "/run/netns/$1")]"
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [[ $(readlink "$process/ns/net") == "$world" ]] || continue
        [[ $(cluster_command "$pid") =~ ^(unshare|bash\ -c|slurmd)\  ]] || echo "$pid"
    done
}

# cluster_files NODE: what there is in its /dev/shm and temporary folder.
cluster_files() {
    local parent=${cluster_inits[$1]} init root
    read -r init _ <"/proc/$parent/task/$parent/children"
    root=/proc/$init/root
    find "$root/dev/shm" "$root$cluster_local" -mindepth 1 -path "$root$cluster_local/spool" -prune \
        -o -mindepth 1 -printf '%p\n'
}
