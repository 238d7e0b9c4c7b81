# shellcheck shell=bash
# An image without a container engine: this machine's own files, with the stages of
# deploy/container/Dockerfile carried out over them on a layer in memory, which goes with the mount
# namespace. To be sourced by tests that run in one (image_namespace).
# shellcheck source=deploy/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../deploy/lib.sh"

image_skip() {
    echo "SKIPPED: $1: no image, nothing tested"
    [[ ! ${MLA_EXPECT_HOSTS:-} ]] || exit 1
    exit 77
}

# venv_program NAME: in $venv_program, one that tests/requirements.txt names.
venv_program() {
    venv_program=$mla_root/build/venv/bin/$1
    [[ -x $venv_program ]] || mla_fail 1 "there is no build/venv: run deploy/packages --tests"
}

# image_namespace SCRIPT ARGUMENT...: starts the script again, once, in mount, network and process
# namespaces of its own. 77, loudly, where that is not allowed.
image_namespace() {
    if [[ ${MLA_IMAGE_NAMESPACE:-} ]]; then
        ip link set lo up
        return
    fi
    if ! unshare --mount --net --pid --fork true 2>/dev/null; then
        image_skip "namespaces can't be made here, which wants root"
    fi
    MLA_IMAGE_NAMESPACE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc \
        "$BASH" "$@"
}

# image_mount: $image_root is this machine, writable. Mounted at a folder that nobody ever removes,
# with devices of its own: what is removed by mistake inside must not be the machine's.
image_mount() {
    local at node numbers
    at=$(dirname "$mla_bin")/image
    mkdir -p "$at"
    mount -t tmpfs -o mode=755 image "$at"
    mkdir "$at"/{upper,work,root,out}
    image_root=$at/root image_out=$at/out
    if ! mount -t overlay -o "lowerdir=/,upperdir=$at/upper,workdir=$at/work" image "$image_root"
    then
        image_skip "no overlay can be mounted here"
    fi
    mount -t proc proc "$image_root/proc"
    mount -t sysfs -o ro sys "$image_root/sys"
    mount -t tmpfs -o mode=1777 tmp "$image_root/tmp"
    mount -t tmpfs -o mode=755 dev "$image_root/dev"
    for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
        IFS=: read -r node numbers <<<"$node"
        mknod -m 666 "$image_root/dev/$node" c "${numbers%:*}" "${numbers#*:}"
    done
    ln -s /proc/self/fd "$image_root/dev/fd"
    mkdir -m 1777 "$image_root/dev/shm"
    mkdir "$image_root/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$image_root/dev/pts"
    ln -s pts/ptmx "$image_root/dev/ptmx"
}

# dockerfile: its instructions, one a line.
dockerfile() {
    sed -e ':a' -e '/\\$/{N;s/\\\n/ /;ba' -e '}' "$mla_root/deploy/container/Dockerfile" |
        grep -v '^ *\(#\|$\)'
}

# image_build BUILD: carries out the Dockerfile: its first stage with the programs of that build
# folder, its last one in the root. What it would run is in image_entry and image_command.
# shellcheck disable=SC2034 # callers read them
image_build() {
    local word rest stage=0 from
    declare -gA image_env=()
    image_user='' image_workdir=/ image_entry=() image_command=()
    while read -r word rest; do
        case $stage-$word in
        *-ARG | *-EXPOSE) ;;
        *-FROM) stage=$((stage + 1)) ;;
        1-COPY | 1-WORKDIR) ;; # the source is here
        1-RUN)
            # The same script; what it would build is there already, without CUDA.
            from=${rest##*--out }
            [[ $rest == "deploy/container/build --preset cuda --out /"* ]] ||
                mla_fail 1 "the first stage runs something else: $rest"
            "$mla_root/deploy/container/build" --from "$1" --out "$image_out$from"
            ;;
        2-COPY)
            read -r from stage_path target <<<"$rest"
            [[ $from == --from=build ]] || mla_fail 1 "the last stage copies something else: $rest"
            mkdir -p "$(dirname "$image_root$target")"
            cp -r "$image_out$stage_path" "$image_root$target"
            ;;
        2-RUN) chroot "$image_root" /bin/sh -c "$rest" ;;
        2-ENV) image_env[${rest%%=*}]=${rest#*=} ;;
        2-USER) image_user=$rest ;;
        2-WORKDIR) image_workdir=$rest ;;
        2-ENTRYPOINT) mapfile -t image_entry < <(json_words "$rest") ;;
        2-CMD) mapfile -t image_command < <(json_words "$rest") ;;
        *) mla_fail 1 "the Dockerfile has $word, which this test does not know" ;;
        esac
    done < <(dockerfile)
    ((stage == 2)) || mla_fail 1 "the Dockerfile has $stage stages"
}

# json_words ["a", "b"]: one a line.
json_words() {
    python3 -c 'import json, sys; print(*json.loads(sys.argv[1]), sep="\n")' "$1"
}

# image_exec [NAME=VALUE...] COMMAND...: becomes the command, as the image's user, in its folder,
# with its environment and nothing else.
image_exec() {
    local environment=() name
    for name in "${!image_env[@]}"; do environment+=("$name=${image_env[$name]}"); done
    exec chroot --userspec="$image_user" --groups="${image_user#*:}" "$image_root" \
        /usr/bin/env -i -C "$image_workdir" HOME=/home/mla "${environment[@]}" "$@"
}

image_run() {
    (image_exec "$@")
}
