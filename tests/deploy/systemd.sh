#!/usr/bin/env bash
# The unit: verified by systemd's own tools in the image, and its command run as it says: user,
# environment, folders, limits, privileges. systemd itself does not run here.
set -euo pipefail
# shellcheck source=tests/deploy/image.sh
source "$(dirname "${BASH_SOURCE[0]}")/image.sh"
image_namespace "${BASH_SOURCE[0]}" "$@"
# shellcheck source=tests/integration/lib.sh
source "$mla_root/tests/integration/lib.sh"

image_mount
image_build "$(dirname "$mla_bin")" >"$dir/build.log"
units=$image_root/opt/mla/deploy/systemd
mkdir -p "$image_root/etc/mla" "$image_root/etc/sysusers.d"
install -m 644 "$units/mla.service" "$image_root/etc/systemd/system/"
install -m 644 "$units/mla.env" "$image_root/etc/mla/"
install -m 644 "$units/mla.conf" "$image_root/etc/sysusers.d/"

chroot "$image_root" userdel --remove mla 2>/dev/null
chroot "$image_root" systemd-sysusers /etc/sysusers.d/mla.conf
[[ $(chroot "$image_root" id -un mla) == mla ]] || mla_fail 1 "systemd-sysusers made no user"
# Other units of this machine are not our business.
chroot "$image_root" systemd-analyze verify mla.service 2>&1 | grep -F mla.service >"$dir/verify" || true
[[ ! -s $dir/verify ]] || mla_fail 1 "$(cat "$dir/verify")"
# In tenths: 40 is 4.0 of 10, where 10 is a unit without any protection.
chroot "$image_root" systemd-analyze security --offline=true --threshold=40 --no-pager mla.service |
    tail -n 1

# setting NAME: its values in the unit, one a line.
setting() {
    sed -n "s/^$1=//p" "$units/mla.service"
}

# What systemd would make before it starts the command.
run_dir=/run/$(setting RuntimeDirectory)
log_dir=/var/log/$(setting LogsDirectory)
mount -t tmpfs -o mode=755 run "$image_root/run"
install -d -o mla -g mla -m "$(setting RuntimeDirectoryMode)" "$image_root$run_dir" 2>/dev/null ||
    { mkdir -p "$image_root$run_dir" && chroot "$image_root" chown mla: "$run_dir"; }
mkdir -p "$image_root$log_dir"
chroot "$image_root" chown mla: "$log_dir"
mkdir -p "$image_root/srv/models"
cp -r "$(mla_case_model v3-tiny)" "$image_root/srv/models/DeepSeek-V2-Lite"

# start [NAME=VALUE...]: the unit's command, as bash understands it: ${A} is a word, $A are words.
start() {
    local words files environment=("$(setting Environment)" HOME=/var/lib/mla USER=mla LOGNAME=mla
        SHELL=/usr/sbin/nologin PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin "$@" OMP_NUM_THREADS=1)
    mapfile -t -O "${#environment[@]}" environment < <(grep -v '^#' "$image_root/etc/mla/mla.env")
    words=$(
        set -a
        # shellcheck source=deploy/systemd/mla.env
        source "$image_root/etc/mla/mla.env"
        for value; do export "${value?}"; done
        eval "printf '%s\n' $(setting ExecStart)"
    )
    mapfile -t words <<<"$words"
    files=$(setting LimitNOFILE)
    [[ $(ulimit -Hn) == unlimited ]] || ((files <= $(ulimit -Hn))) || files=$(ulimit -Hn)
    (
        umask "$(setting UMask)"
        exec chroot "$image_root" /usr/bin/env -i "${environment[@]}" \
            prlimit --nofile="$files" -- \
            setpriv --reuid mla --regid mla --clear-groups --no-new-privs --bounding-set=-all \
            --inh-caps=-all -- "${words[@]}" </dev/null >"$dir/out" 2>"$dir/serve.log"
    ) &
    serve=$!
}

: >"$dir/out"
start
ready() {
    cp "$image_root$log_dir"/*.log "$dir/" 2>/dev/null
    grep -q '^ready tcp://127.0.0.1:5755' "$dir/out"
}
mla_within 30 ready
"$mla_bin/mla-check" "$mla_root/tests/golden/v3-tiny" --endpoint tcp://127.0.0.1:5755 | tail -n 1
[[ $(mla_get 9464 /healthz | head -n 1) == *' 200 '* ]] || mla_fail 1 "not healthy"
[[ -s $image_root$log_dir/coordinator.log ]] || mla_fail 1 "no log in $log_dir"
began=$SECONDS
kill -TERM "$serve"
wait "$serve" || mla_fail 1 "mla-serve ended with $?"
((SECONDS - began < $(setting TimeoutStopSec))) || mla_fail 1 "it took longer than TimeoutStopSec"
! pgrep -x mla-worker || mla_fail 1 "a worker is left"

# What can't be served ends with a code that systemd does not try again.
start MLA_MODEL=/srv/models/none
code=0
wait "$serve" || code=$?
[[ " $(setting RestartPreventExitStatus) " == *" $code "* ]] || mla_fail 1 "code $code: $(tail -n 3 "$dir/serve.log")"
echo "a model that is not there: code $code, not started again"
