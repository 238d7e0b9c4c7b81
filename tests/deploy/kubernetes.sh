#!/usr/bin/env bash
# The image, by the steps of its Dockerfile, and in it the very commands of deploy/kubernetes, with
# CPU ranks: probes, mla-check, a rank that dies, a coordinator that is replaced. What the kubelet
# and Kubeflow's operator do is done here: volumes, environment, starting containers again.
set -euo pipefail
# shellcheck source=tests/deploy/image.sh
source "$(dirname "${BASH_SOURCE[0]}")/image.sh"
image_namespace "${BASH_SOURCE[0]}" "$@"
# shellcheck source=tests/integration/lib.sh
source "$mla_root/tests/integration/lib.sh"

venv_program python
manifests() {
    "$venv_program" "$mla_root/tests/deploy/manifests.py" "$@"
}
manifests check
if command -v kubectl >/dev/null; then
    kubectl kustomize "$mla_root/deploy/kubernetes" | manifests rendered
else
    echo "SKIPPED: there is no kubectl here, so kustomization.yaml was read without kustomize"
fi

model=$(mla_case_model v3-tiny)
image_mount
image_build "$(dirname "$mla_bin")" >"$dir/build.log"
tail -n 1 "$dir/build.log"

# ---- Volumes and names, as a cluster gives them

# secret PATH FILE...: as the kubelet mounts one with fsGroup 1000.
secret() {
    local path=$image_root$1
    shift
    install -d -g 1000 -m 2775 "$path" "$path/..now"
    install -g 1000 -m 440 "$@" "$path/..now/"
    (cd "$path" && ln -s ..now/* .)
}

"$mla_bin/mla-keys" "$dir/keys" >/dev/null
(cd "$dir/keys" && secret /keys server.key clients.allow workers.allow worker.key server.pub)
(cd "$dir/keys" && secret /client client.key server.pub)
mkdir -p "$image_root/models"
cp -r "$model" "$image_root/models/DeepSeek-V3"

ssh-keygen -q -t ecdsa -b 521 -N '' -f "$dir/id_rsa"
cp "$dir/id_rsa.pub" "$dir/authorized_keys"
secret /home/mla/.ssh "$dir"/{id_rsa,id_rsa.pub,authorized_keys}
chmod 644 "$image_root"/home/mla/.ssh/..now/*

host=mla-group-0-worker-0.mla-group-0.default.svc
echo "127.0.0.1 localhost mla $host $(hostname)" >"$image_root/etc/hosts"
mkdir -p "$image_root/etc/mpi"
echo "$host slots=8" >"$image_root/etc/mpi/hostfile"
operator=(OMPI_MCA_orte_keep_fqdn_hostnames=true
    OMPI_MCA_orte_default_hostfile=/etc/mpi/hostfile
    OMPI_MCA_plm_rsh_args="-o ConnectionAttempts=10" OMPI_MCA_orte_set_default_slots=8)
# No part of the manifests: two cores for eight ranks.
slow=(OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMPI_MCA_mpi_yield_when_idle=1
    OMPI_MCA_rmaps_base_oversubscribe=1)

# ---- Containers

# start NAME VARIABLE...: the container's command.
start() {
    local name=$1 words
    shift
    mapfile -d '' words < <(manifests command "$name")
    image_exec "$@" "${words[@]}" </dev/null >>"$dir/$name.log" 2>&1 &
    pids[$name]=$!
}

declare -A pids=()

# answers PROBE CODE: of the coordinator.
answers() {
    local path port
    path=$(manifests field "coordinator.$1.httpGet.path")
    port=$(manifests field "coordinator.$1.httpGet.port")
    [[ $(mla_get "$port" "$path" 2>/dev/null | head -n 1) == *" $2 "* ]]
}

check() {
    image_run mla-check /opt/mla/tests/golden/v3-tiny --endpoint tcp://mla:5755 \
        --curve-keys /client >"$dir/check.log" || mla_fail 1 "$(tail -n 5 "$dir/check.log")"
    tail -n 1 "$dir/check.log"
}

ranks() {
    pgrep -x mla-worker | sort | xargs
}

start coordinator
start worker
mla_within 20 answers livenessProbe 200
answers readinessProbe 503 || mla_fail 1 "ready without a group"
mla_within 10 bash -c "exec 3<>/dev/tcp/127.0.0.1/$(manifests field worker.readinessProbe.tcpSocket.port)" 2>/dev/null
start launcher "${operator[@]}" "${slow[@]}"
mla_within 60 answers readinessProbe 200
[[ $(ranks | wc -w) == 8 ]] || mla_fail 1 "there are $(ranks | wc -w) ranks"
users=$(ps -o uid= -C mla-worker,mla-coordinator,mpirun,sshd | sort -u | xargs)
[[ $users == 1000 ]] || mla_fail 1 "something runs as $users"
check

echo "a rank is killed: the launcher ends, and is started again"
kill -KILL "$(pgrep -x mla-worker | tail -n 1)"
code=0
wait "${pids[launcher]}" || code=$?
((code != 0)) || mla_fail 1 "the launcher ended with 0, which is the end of an MPIJob"
mla_within 10 answers readinessProbe 503
answers livenessProbe 200 || mla_fail 1 "a lost group is held against the coordinator"
start launcher "${operator[@]}" "${slow[@]}"
mla_within 60 answers readinessProbe 200
check

echo "the coordinator is replaced: the same ranks join the next one"
before=$(ranks)
kill -TERM "${pids[coordinator]}"
wait "${pids[coordinator]}" || mla_fail 1 "the coordinator ended with $?"
start coordinator
mla_within 30 answers readinessProbe 200
[[ $(ranks) == "$before" ]] || mla_fail 1 "other ranks than before"
check

echo "a host without the group's key is not talked to"
ssh-keygen -q -t ecdsa -b 521 -N '' -f "$dir/other"
install -m 444 "$dir/other.pub" "$image_root/home/mla/.ssh/..now/id_rsa.pub"
! image_run ssh "$host" true 2>"$dir/ssh.log" || mla_fail 1 "ssh takes any host's key"
grep -q 'verification failed' "$dir/ssh.log" || mla_fail 1 "$(cat "$dir/ssh.log")"

kill -TERM "${pids[launcher]}"
wait "${pids[launcher]}" || true
mla_within 10 bash -c '! pgrep -x mla-worker >/dev/null'
