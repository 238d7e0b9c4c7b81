# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # a part of mla-serve, which has the rest
# The command line of mla-serve. To be sourced by it.

usage() {
    cat <<'END'
usage: mla-serve --model DIR [options]

  --model DIR      a Hugging Face checkpoint folder: config.json and safetensors
  --layers A-B     the layers to serve; all that the checkpoint has by default
  --ranks N        tensor-parallel ranks of a group (all slots of the hosts, or 1)
  --groups G       groups, each with its own weights and KV cache (1)
  --endpoint E     where clients connect (tcp://127.0.0.1:5755)
  --curve-keys DIR keys of mla-keys, for whoever connects over tcp

  --hosts A:N,B:M  the hosts that ranks run on, and how many on each: one for a GPU. By default
                   those of the Slurm allocation this runs in, else this machine alone
  --hostfile FILE  the same, a host on a line: "A:N" or "A slots=N"
  --network CIDR   the network that the hosts reach each other on (that of the way to the first)
  --workers E      where ranks connect (over hosts tcp://ADDRESS:5756, with our address in the
                   network; else a socket in a private folder)
  --dry-run        print the commands, and run none

  --bind B         auto: ranks on CPUs stay on their core where there is one for each, with the
                   coordinator on the last one's, and ranks on GPUs on the cores near theirs;
                   none: never ($MLA_BIND, or auto)
  --back-off-ms N  the longest pause before what keeps ending is started again (10000)
  --spin           coordinator and ranks, and ZeroMQ's thread in each, look for messages instead
                   of sleeping: two cores each, all the time; saves waking up in every RUN
  --log-dir DIR    where coordinator.log and group-N.log go; a temporary folder by default
  --help           this text

Options of mla-coordinator and mla-worker are passed on to them; see their --help.
Prints "ready ENDPOINT" when clients can be served, and on stderr what was started and where its
logs are. What ends by itself is started again. SIGTERM and SIGINT end all.
END
}

# Who takes an option: this script, the coordinator or the workers. A flag has no value.
declare -A takers=(
    [--model]=serve [--ranks]=serve [--groups]=serve [--log-dir]=serve [--workers]=serve
    [--bind]=serve [--back-off-ms]=serve [--hosts]=serve [--hostfile]=serve [--network]=serve
    [--curve-keys]=serve [--dry-run]=serve-flag
    [--endpoint]=coordinator [--decode-tokens-max]=coordinator [--prefill-tokens-max]=coordinator
    [--buckets]=coordinator [--pad-decode]=coordinator-flag [--kv-blocks]=coordinator
    [--context-max]=coordinator [--sequences-max]=coordinator [--steps-open-max]=coordinator
    [--step-tokens-max]=coordinator [--runs-queued-max]=coordinator [--credits]=coordinator
    [--payload-memory]=coordinator [--heartbeat-ms]=coordinator
    [--heartbeat-timeout-ms]=coordinator [--run-timeout-ms]=coordinator [--payload]=coordinator
    [--region-memory]=coordinator [--clients-max]=coordinator [--frame-bytes-max]=coordinator
    [--memory-max]=coordinator [--metrics]=coordinator [--insecure]=coordinator-flag
    [--spin]=both-flag
    [--layers]=worker [--backend]=worker [--kv-dtype]=worker [--kv-memory]=worker
    [--kv-memory-fraction]=worker [--graphs]=worker [--collectives]=worker [--trace]=worker
    [--threads]=worker [--context-chunk]=worker [--poll-us]=worker
    [--connect-timeout-ms]=worker
)
declare -A own=([--model]='' [--ranks]='' [--groups]=1 [--log-dir]='' [--workers]=''
    [--hosts]='' [--hostfile]='' [--network]='' [--curve-keys]='' [--dry-run]=''
    [--bind]=${MLA_BIND:-auto} [--back-off-ms]=10000)
coordinator_options=() worker_options=()

# take NAME [VALUE]: where an option goes.
take() {
    case ${takers[$1]} in
    serve) own[$1]=$2 ;;
    serve-flag) own[$1]=yes ;;
    coordinator*) coordinator_options+=("$@") ;;
    worker) worker_options+=("$@") ;;
    both*)
        coordinator_options+=("$@")
        worker_options+=("$@")
        ;;
    esac
}

# has_option NAME OPTION...: whether it is among them.
has_option() {
    local name=$1 option
    shift
    for option; do
        [[ $option != "$name" ]] || return 0
    done
    return 1
}

parse() {
    local name
    while (($#)); do
        name=${1%%=*}
        [[ $name != --help ]] || { usage && exit 0; }
        [[ -n ${takers[$name]:-} ]] || mla_fail 2 "unknown option '$1'; --help lists them"
        if [[ ${takers[$name]} == *-flag ]]; then
            take "$name"
            shift
        elif [[ $1 == *=* ]]; then
            take "$name" "${1#*=}"
            shift
        else
            (($# > 1)) || mla_fail 2 "option '$1' wants a value"
            take "$name" "$2"
            shift 2
        fi
    done
    check_options
}

check_options() {
    local name
    [[ -n ${own[--model]} ]] || mla_fail 2 "option '--model' is missing"
    for name in --ranks --groups; do
        [[ ${own[$name]} =~ ^([1-9][0-9]{0,2})?$ ]] ||
            mla_fail 2 "option '$name' wants a number from 1, not '${own[$name]}'"
    done
    [[ ${own[--back-off-ms]} =~ ^(0|[1-9][0-9]{0,6})$ ]] ||
        mla_fail 2 "option '--back-off-ms' wants a number, not '${own[--back-off-ms]}'"
    [[ ${own[--bind]} =~ ^(auto|none)$ ]] ||
        mla_fail 2 "option '--bind' wants auto or none, not '${own[--bind]}'"
    [[ ${own[--network]} =~ ^([0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2})?$ ]] ||
        mla_fail 2 "option '--network' wants a network like 10.1.0.0/16, not '${own[--network]}'"
    [[ -z ${own[--hosts]} || -z ${own[--hostfile]} ]] ||
        mla_fail 2 "options '--hosts' and '--hostfile' exclude each other"
}
