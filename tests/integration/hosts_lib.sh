# shellcheck shell=bash
# Hosts made of this one: each has a network, a name, an sshd, a /dev/shm and a temporary folder of
# its own, and a switch is between them. What they share is what the hosts of a cluster share:
# programs and the model. All of it goes with the processes that hold the namespaces. To be sourced
# after lib.sh.

hosts_subnet=10.77.0
# shellcheck disable=SC2154 # dir is lib.sh's
hosts_tmp=$dir/tmp # a folder of its own on each host
hosts_held=()      # [number]: the process that holds a host's namespaces; 0: the switch
hosts_sshds=()

# Why there can be no hosts here; nothing where there can.
hosts_missing() {
    local program
    ((EUID == 0)) || { echo "only root makes network namespaces" && return; }
    for program in ip unshare nsenter ssh ssh-keygen /usr/sbin/sshd; do
        command -v "$program" >/dev/null || { echo "there is no $program" && return; }
    done
    unshare --net --uts --mount true 2>/dev/null || { echo "no namespaces are allowed" && return; }
    unshare --net ip link add type veth 2>/dev/null || { echo "there is no veth" && return; }
    unshare --net ip link add type bridge 2>/dev/null || echo "there is no bridge"
}

# on N COMMAND...: on a host.
on() {
    (become "$@")
}
# The same, in place of this shell: `become N COMMAND... &` is the command's own process.
become() {
    local host=$1
    shift
    exec nsenter --target "${hosts_held[host]}" --net --uts --mount -- "$@"
}

hosts_hold() {
    setpriv --pdeathsig KILL -- unshare --net --uts --mount --propagation private \
        tail -f "$dir/held" &
    hosts_held[$1]=$!
    mla_within 5 hosts_is_held "$1"
}
hosts_is_held() {
    [[ $(<"/proc/${hosts_held[$1]}/comm") == tail ]]
}

hosts_sshd() {
    local host=$1
    cat >"$dir/h$host.sshd" <<END
Port 2222
ListenAddress $hosts_subnet.$host
HostKey $dir/ssh/host
AuthorizedKeysFile $dir/ssh/user.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
SetEnv TMPDIR=$hosts_tmp
END
    become "$host" setpriv --pdeathsig KILL -- /usr/sbin/sshd -D -E "$dir/h$host.sshd.log" \
        -f "$dir/h$host.sshd" &
    hosts_sshds+=($!)
}

# hosts_make N: hosts h1 to hN. Programs on them find each other by name; ssh by mla_ssh, which
# Open MPI is told of.
hosts_make() {
    local host count=$1
    : >"$dir/held"
    mkdir -p "$dir/ssh" "$hosts_tmp"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/ssh/host"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/ssh/user"
    cat >"$dir/ssh/config" <<END
Host *
    Port 2222
    IdentityFile $dir/ssh/user
    UserKnownHostsFile $dir/ssh/known
    LogLevel ERROR
END
    echo "127.0.0.1 localhost" >"$dir/names"
    for ((host = 1; host <= count; host++)); do
        echo "$hosts_subnet.$host h$host" >>"$dir/names"
        echo "[h$host]:2222,[$hosts_subnet.$host]:2222 $(<"$dir/ssh/host.pub")" >>"$dir/ssh/known"
    done
    hosts_hold 0
    on 0 ip link add switch type bridge
    on 0 ip link set switch up
    for ((host = 1; host <= count; host++)); do
        hosts_hold "$host"
        on 0 ip link add "port$host" type veth peer name eth0 netns "${hosts_held[host]}"
        on 0 ip link set "port$host" master switch up
        on "$host" sh -e -c "
            hostname h$host
            ip link set lo up
            ip addr add $hosts_subnet.$host/24 dev eth0
            ip link set eth0 up
            mount -t tmpfs tmpfs /dev/shm
            mount -t tmpfs tmpfs '$hosts_tmp'
            mount -t tmpfs tmpfs /run
            mkdir /run/sshd
            mount --bind '$dir/names' /etc/hosts"
        hosts_sshd "$host"
    done
    export OMPI_MCA_plm_rsh_agent="ssh -F $dir/ssh/config"
    for ((host = 2; host <= count; host++)); do mla_within 10 hosts_answers "$host"; done
}
hosts_answers() {
    on 1 ssh -F "$dir/ssh/config" "h$1" true 2>/dev/null
}

# Cuts a host off: its link goes down, and nobody is told.
hosts_cut() {
    on 0 ip link set "port$1" down
}
hosts_heal() {
    on 0 ip link set "port$1" up
}

# hosts_pids N PATTERN: processes on a host whose command line matches.
hosts_pids() {
    local pid host
    host=$(readlink "/proc/${hosts_held[$1]}/ns/net")
    for pid in /proc/[0-9]*; do
        [[ $(readlink "$pid/ns/net") == "$host" ]] || continue
        if { tr '\0' ' ' <"$pid/cmdline" | grep -qE "$2"; } 2>/dev/null; then
            echo "${pid##*/}"
        fi
    done
}

# What is left on a host: files and processes that it did not begin with.
hosts_left() {
    on "$1" find /dev/shm "$hosts_tmp" -mindepth 1
    hosts_pids "$1" '^(mla-|bash |[^ ]*/?(mla-|orted|mpirun|ssh )|sshd: root)'
}

hosts_end() {
    local pid
    for pid in "${hosts_sshds[@]}" "${hosts_held[@]}"; do
        kill -KILL "$pid"
        wait "$pid" 2>/dev/null || true
    done
    hosts_held=() hosts_sshds=()
}
