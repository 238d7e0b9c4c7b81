#!/usr/bin/env bash
# What can be known to be wrong ends mla-serve before anything listens, with the exit code that
# proto/status.h gives it.
set -euo pipefail
# shellcheck source=tests/integration/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$(mla_case_model v3-tiny)

# refuse CODE WORD OPTION...: mla-serve must end with CODE and a sentence that has WORD in it.
refuse() {
    local want=$1 word=$2 code=0
    shift 2
    TMPDIR=$dir timeout 30 "$mla_root/deploy/mla-serve" --log-dir "$dir" "$@" \
        >"$dir/refuse.out" 2>"$dir/refuse.log" || code=$?
    ((code == want)) || mla_fail 1 "exit code $code instead of $want from: $*"
    [[ ! -s $dir/refuse.out ]] || mla_fail 1 "something on stdout from: $*"
    grep -qi -- "$word" "$dir/refuse.log" || mla_fail 1 "no '$word' in the sentence from: $*"
    [[ ! -e $dir/clients ]] || mla_fail 1 "clients' endpoint was bound from: $*"
    mla_nothing_left
}

# copy NAME: a model folder of links, in which single files can be replaced.
copy() {
    mkdir "$dir/$1"
    ln -s "$model"/* "$dir/$1"
}

on=(--endpoint "ipc://$dir/clients")
refuse 2 model "${on[@]}"
refuse 2 no-such --model "$model" "${on[@]}" --no-such 1
refuse 2 value --model "$model" --endpoint
refuse 2 ranks --model "$model" "${on[@]}" --ranks 0
refuse 2 groups --model "$model" "${on[@]}" --groups 1x
refuse 2 kv-dtype --model "$model" "${on[@]}" --kv-dtype int3
refuse 2 backend --model "$model" "${on[@]}" --backend abacus
refuse 2 buckets --model "$model" "${on[@]}" --buckets 4,2
refuse 2 bind --model "$model" "${on[@]}" --bind maybe
refuse 2 payload --model "$model" "${on[@]}" --payload both
refuse 2 region --model "$model" "${on[@]}" --region-memory 2000T
refuse 2 prefill --model "$model" "${on[@]}" --prefill-tokens-max 0

# Hosts: none of these is asked for anything.
hosts=(--model "$model" --network 127.0.0.0/8)
refuse 2 curve-keys "${hosts[@]}" --hosts a:2
refuse 2 HOST:RANKS "${hosts[@]}" --insecure --hosts a:0
refuse 2 HOST:RANKS "${hosts[@]}" --insecure --hosts a:2,-oProxyCommand=x:2
refuse 2 'more ranks' "${hosts[@]}" --insecure --hosts a:4,b:4 --groups 3 --ranks 3
refuse 2 exclude "${hosts[@]}" --insecure --hosts a --hostfile b
refuse 2 'to read hosts from' "${hosts[@]}" --insecure --hostfile "$dir/nowhere"
refuse 2 reach "${hosts[@]}" --insecure --hosts a:2 --workers ipc:///x
refuse 2 network --model "$model" --insecure --hosts a:2 --network 10.1
refuse 2 'no address in' --model "$model" --insecure --hosts a:2 --network 203.0.113.0/24

# placed WANT OPTION...: on which hosts mla-serve would put the ranks: "HOST:RANKS from GPU", "/"
# between groups.
placed() {
    local want=$1 got
    shift
    got=$("$mla_root/deploy/mla-serve" "${hosts[@]}" --insecure --dry-run "$@" | grep mpirun |
        grep -oE -e '--host [^ ]*|--device [0-9]*|^env' | sed 's/^env/\//; s/.* //' | tr '\n' ' ')
    [[ $got == "/ $want " ]] || mla_fail 1 "placed $got instead of / $want: $*"
}
placed 'a:4 0 b:4 0' --hosts a:4,b:4
placed 'a:4 0 / b:4 0' --hosts a:4,b:4 --groups 2
placed 'b:5 0 / a:4 0 b:1 5' --hosts a:4,b:6 --groups 2 --ranks 5
placed 'b:2 0 / a:2 0 / a:2 2' --hosts a:4,b:2 --groups 3
placed 'a:2 0 b:2 0' --hosts a,b --ranks 4
printf '# cluster\na slots=2\n\nb:2 # spare\nc\n' >"$dir/hostfile"
placed 'a:2 0 b:2 0 c:1 0' --hostfile "$dir/hostfile"

refuse 3 config --model "$dir/nowhere" "${on[@]}"
copy config && rm "$dir/config/config.json"
sed 's/"kv_lora_rank": *[0-9]*/"kv_lora_rank": -1/' "$model/config.json" >"$dir/config/config.json"
refuse 3 kv_lora_rank --model "$dir/config" "${on[@]}"

copy cut && rm "$dir/cut/model.safetensors"
head -c 100000 "$model/model.safetensors" >"$dir/cut/model.safetensors"
refuse 4 safetensors --model "$dir/cut" "${on[@]}"
copy none && rm "$dir/none/model.safetensors"
refuse 4 safetensors --model "$dir/none" "${on[@]}"
refuse 4 layer --model "$model" "${on[@]}" --layers 7

# A port picked by one service is in use for the next.
mla_start "$dir" 60 --model "$model" --endpoint 'tcp://127.0.0.1:*' 2>"$dir/first.log"
code=0
TMPDIR=$dir timeout 30 "$mla_root/deploy/mla-serve" --model "$model" \
    --endpoint "$mla_endpoint" >/dev/null 2>"$dir/second.log" || code=$?
((code == 5)) || mla_fail 1 "exit code $code instead of 5 for $mla_endpoint in use"
grep -q "$mla_endpoint" "$dir/second.log" || mla_fail 1 "the sentence doesn't name the endpoint"
kill -0 "$mla_serve" || mla_fail 1 "the first service ended"
mla_stop
refuse 5 nonsense --model "$model" --endpoint nonsense://x
mla_nothing_left
