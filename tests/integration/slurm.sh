#!/usr/bin/env bash
# The service as a Slurm job (deploy/slurm/mla.sbatch), on a cluster of three nodes on this machine:
# what it does when a rank dies, a node fails, mla-serve dies, its time is up and it is cancelled.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/integration/slurm_cluster.sh
source "$here/slurm_cluster.sh"
if [[ ${1:-} != --inside ]]; then
    missing=$(cluster_missing)
    if [[ $missing ]]; then
        echo "SKIPPED: there can't be a Slurm cluster here: ${missing//$'\n'/, }"
        exit 77
    fi
    cluster_namespaces "$0" --inside
fi
# shellcheck source=tests/integration/lib.sh
source "$here/lib.sh"

case_dir=$mla_root/tests/golden/v3-tiny
model=$(mla_case_model v3-tiny)
export MLA_BIN=$mla_bin
# The nodes share the processors of this machine.
export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

told() {
    echo "$((SECONDS))s: $*"
}

# submit OPTION...: of mla-serve; on two of the nodes, with two GPUs in each, so four ranks.
submit() {
    (cd "$dir" && sbatch --parsable --nodes=2 --gpus-per-node=2 \
        "$mla_root/deploy/slurm/mla.sbatch" --poll-us 0 \
        --heartbeat-timeout-ms 10000 "$@")
}

# ready START: the service is ready, for the so-many-th time that Slurm started it.
ready() {
    mla_within 40 is_ready "$1"
    told "start $1 is ready at $(<"$dir/mla/endpoint")"
}
is_ready() {
    [[ -s $dir/mla/endpoint ]] && grep -q "start $1\$" "$dir/mla-$job.log"
}

client() {
    "$mla_bin/$1" "${@:2}" --endpoint "$(<"$dir/mla/endpoint")" --curve-keys "$dir/mla/keys" \
        --payload inline >"$dir/client.log" || mla_fail 1 "$1 failed"
    told "$(tail -n 1 "$dir/client.log")"
}

# one NODE PATTERN: the first process of the node whose command line matches.
one() {
    local pid
    while read -r pid; do
        if [[ $(cluster_command "$pid") =~ $2 ]]; then
            echo "$pid"
            return 0
        fi
    done < <(cluster_pids "$1")
    mla_fail 1 "no process on $1 matches '$2'"
}

# nothing_left NODE...
nothing_left() {
    local node left
    for node; do
        mla_within 20 has_none "$node"
        left=$(cluster_files "$node")
        [[ -z $left ]] || mla_fail 1 "still there on $node: $left"
    done
}
has_none() {
    [[ -z $(cluster_pids "$1") ]]
}

has_recovered() {
    [[ $(grep -c '^group 0 is ready' "$dir/mla/logs/coordinator.log") == 2 ]]
}

cancel() {
    scancel "$job"
    mla_within 20 cluster_idle
    nothing_left node1 node2 node3
    [[ ! -e $dir/mla/endpoint ]] || mla_fail 1 "the endpoint is still published"
    told "cancelled, and nothing is left"
}

# has_ended STATE CODE
has_ended() {
    [[ $(scontrol show job "$job") == *"JobState=$1 "*"ExitCode=$2"* ]]
}

cluster_start "$dir" 3 2 2
mla_within 20 cluster_idle
told "three nodes are idle"

job=$(submit --model "$model")
ready 1
client mla-check "$case_dir"

# A rank on another node than the coordinator's.
kill -KILL "$(one node2 '^[^ ]*/mla-worker')"
mla_within 20 has_recovered
client mla-check "$case_dir"

# A node fails, and the job moves.
scontrol update nodename=node2 state=down reason=test
ready 2
client mla-soak --runs 20
nothing_left node2
scontrol update nodename=node2 state=resume

# mla-serve dies without a word.
kill -KILL "$(one node1 '^bash .*mla-serve')"
ready 3
client mla-soak --runs 20

# Its time is up.
scancel --batch --signal=USR1 "$job"
ready 4
client mla-soak --runs 20
cancel

# Several groups' daemons on one node, which is not the coordinator's.
job=$(submit --model "$model" --groups 4 --ranks 1)
ready 1
client mla-soak --runs 20
cancel

# What is wrong stays wrong.
job=$(submit --model "$dir")
mla_within 20 has_ended FAILED 3:0
told "without a model it has failed"
