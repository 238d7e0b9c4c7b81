# shellcheck shell=bash
# The environment of the Python client's tests and style gates. To be sourced, in the root.

# mla_python EXTRA...: build/python, with the client of this tree and what its extras name.
# MLA_PYTHON is made the base of a new one: by default the system's, as what is found first may be
# anybody's. Where that has torch, the environment has it as well.
mla_python() {
    local base=${MLA_PYTHON:-/usr/bin/python3} options=() IFS=,
    if ! build/python/bin/python -c '' 2>/dev/null; then
        ! "$base" -c 'import torch' 2>/dev/null || options=(--system-site-packages)
        rm -rf build/python
        "$base" -m venv "${options[@]}" build/python || return
    fi
    build/python/bin/pip install --quiet --disable-pip-version-check "./proto/python[$*]"
}
