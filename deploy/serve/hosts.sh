# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # a part of mla-serve, which has the rest
# Which hosts there are, which ranks go where, and how the hosts reach us. To be sourced by
# mla-serve.

# The hosts, and how many ranks each can take; empty: nobody said.
hosts=() slots=()
# Of each group: a word HOST:RANKS:FIRST for each of its hosts. FIRST counts the slots, and so the
# GPUs, that other groups have there.
placements=()
# Whether ranks run on another host than this one.
spread=''

host_add() {
    local name=$1 count=$2
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ && $count =~ ^([1-9][0-9]{0,2})?$ ]] ||
        mla_fail 2 "'$name${count:+:}$count' is no host, nor HOST:RANKS"
    hosts+=("$name")
    slots+=("$count")
}

hosts_of_list() {
    local entry entries
    IFS=, read -r -a entries <<<"$1"
    for entry in "${entries[@]}"; do
        [[ $entry != *: ]] || mla_fail 2 "'$entry' is no host, nor HOST:RANKS"
        if [[ $entry == *:* ]]; then host_add "${entry%%:*}" "${entry#*:}"; else
            host_add "$entry" ''
        fi
    done
}

hosts_of_file() {
    local name rest
    [[ -r $1 ]] || mla_fail 2 "there is no file $1 to read hosts from"
    while read -r name rest; do
        [[ -n $name && $name != '#'* ]] || continue
        case $rest in
        slots=*) host_add "$name" "${rest#slots=}" ;;
        '' | '#'*) hosts_of_list "$name" ;;
        *) mla_fail 2 "$1: '$name $rest' is neither HOST:RANKS nor HOST slots=RANKS" ;;
        esac
    done <"$1"
    ((${#hosts[@]})) || mla_fail 2 "$1 names no host"
}

# Slurm tells tasks of nodes as "4(x2),1".
hosts_of_slurm() {
    local names part count times=1 i=0
    mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    while read -r part; do
        count=${part%%(*} times=1
        [[ $part != *'(x'* ]] || { times=${part#*x} && times=${times%)}; }
        for (( ; times > 0; times--, i++)); do
            host_add "${names[i]}" "$count"
        done
    done < <(tr ',' '\n' <<<"${SLURM_TASKS_PER_NODE:-1(x${#names[@]})}")
}

is_here() {
    [[ $1 == localhost || $1 == 127.* || $1 == "$(uname -n)" || $(uname -n) == "$1".* ]] ||
        [[ " $(hostname -I 2>/dev/null) " == *" $1 "* ]]
}

find_hosts() {
    local host
    if [[ ${own[--hosts]} ]]; then
        hosts_of_list "${own[--hosts]}"
    elif [[ ${own[--hostfile]} ]]; then
        hosts_of_file "${own[--hostfile]}"
    elif [[ ${SLURM_JOB_ID:-} && ${SLURM_JOB_NODELIST:-} ]]; then
        hosts_of_slurm
    else
        host_add localhost ''
    fi
    for host in "${hosts[@]}"; do
        is_here "$host" || spread=yes
    done
}

# Ranks of a group: all slots share alike unless --ranks says it. Hosts whose slots nobody told
# share what is wanted alike.
count_ranks() {
    local total=0 i
    if [[ -z ${own[--ranks]} ]]; then
        for i in "${!slots[@]}"; do total=$((total + ${slots[i]:-1})); done
        own[--ranks]=$((total > own[--groups] ? total / own[--groups] : 1))
    fi
    total=$((own[--ranks] * own[--groups]))
    for i in "${!slots[@]}"; do
        slots[i]=${slots[i]:-$(((total + ${#hosts[@]} - 1) / ${#hosts[@]}))}
    done
}

# The host that takes what is left of a group with the least to spare; where none can, the one with
# most room: a group is on as few hosts as possible.
choose_host() {
    local left=$1 i
    chosen=''
    for i in "${!free[@]}"; do
        ((free[i] > 0)) || continue
        if [[ -z $chosen ]]; then
            chosen=$i
        elif ((free[chosen] >= left)); then
            ((free[i] < left || free[i] >= free[chosen])) || chosen=$i
        elif ((free[i] > free[chosen])); then
            chosen=$i
        fi
    done
    [[ -n $chosen ]]
}

plan_hosts() {
    local group left chosen taken total=0 free=("${slots[@]}")
    for ((group = 0; group < own[--groups]; group++)); do
        placements[group]=''
        for ((left = own[--ranks]; left > 0; left -= taken)); do
            choose_host "$left" || mla_fail 2 \
                "--groups ${own[--groups]} x --ranks ${own[--ranks]} need more ranks than the hosts take"
            taken=$((left < free[chosen] ? left : free[chosen]))
            placements[group]+="${hosts[chosen]}:$taken:$((slots[chosen] - free[chosen])) "
            free[chosen]=$((free[chosen] - taken))
        done
    done
}

# ---- The network between the hosts, and our address in it

network='' address=''

# The way to a host, by its name. Where it leads through a router nothing is said about networks:
# the other hosts' addresses are in another one.
network_to() {
    local there way device
    read -r there _ < <(getent ahostsv4 "$1") || mla_fail 2 "host '$1' is not known here"
    way=$(ip -o -4 route get "$there" 2>/dev/null) || mla_fail 2 "there is no way to '$1' ($there)"
    address=$(sed -n 's/.* src \([0-9.]*\).*/\1/p' <<<"$way")
    device=$(sed -n 's/.* dev \([^ ]*\).*/\1/p' <<<"$way")
    [[ $way == *' via '* ]] ||
        read -r network _ < <(ip -o -4 route show dev "$device" scope link src "$address") || true
}

find_network() {
    local host
    command -v ip >/dev/null || mla_fail 1 "the program ip (Debian's iproute2) is missing"
    network=${own[--network]}
    if [[ $network ]]; then
        address=$(ip -o -4 addr show up to "$network" | sed -n '1s/.* inet \([0-9.]*\).*/\1/p')
        [[ $address ]] || mla_fail 2 "this host has no address in $network"
        return 0
    fi
    for host in "${hosts[@]}"; do
        ! is_here "$host" || continue
        network_to "$host"
        return 0
    done
}
