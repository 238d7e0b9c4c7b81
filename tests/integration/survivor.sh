# shellcheck shell=bash
# What the fault tests share: a client that goes on whatever happens (mla-survive), and when it said
# what. Its log is $dir/client.log: lines of "NANOSECONDS good|bad ...". To be sourced after lib.sh.

now_ns() {
    date +%s%N
}

# are_gone PID...: a process that has ended stays as a zombie until init has time.
are_gone() {
    local pid
    for pid; do
        ! grep -qs '^State:.[^ZX]' "/proc/$pid/status" || return 1
    done
}

client=''
# survivor COMMAND...: starts it, and waits for its first result.
survivor() {
    # shellcheck disable=SC2154 # dir is lib.sh's
    : >"$dir/client.log"
    "$@" >"$dir/client.log" 2>&1 &
    client=$!
    mla_within 30 grep -q ' good$' "$dir/client.log"
}

# It must have had nothing but right rows and typed errors.
client_stop() {
    local code=0
    kill -TERM "$client"
    wait "$client" || code=$?
    client=''
    ((code == 0)) || mla_fail 1 "the client ended with $code"
    grep -q ', 0 wrong;' "$dir/client.log" || mla_fail 1 "the client checked nothing"
}

# after NS WORD: when the client first said WORD after that.
after() {
    awk -v since="$1" -v word="$2" '$1 > since && $2 == word { print $1; exit }' "$dir/client.log"
}
has_after() {
    [[ -n $(after "$@") ]]
}
