#!/bin/sh
# Installs a real Triton server and the Python that its models run in, below .triton/ in the repository root.
# No GPU and no container are needed. Running it again does nothing until a pin below changes.
#
#   PYTHON   interpreter to build the models' environment from (default: python3); 3.11 to 3.13
#
# .triton/dist   the server, unpacked from a wheel that carries it; its Python API is not used
# .triton/venv   what deploy/triton/models import; apart from the project's own environment, because the server's
#                Python stub misreads numpy 2 arrays
set -eu

SERVER='nvidia-pytriton==0.7.0'                       # carries tritonserver 2.51 (24.10)
# torch is pinned to the exact release: an open range may resolve to builds that bring gigabytes of CUDA libraries.
MODEL='numpy<2 torch==2.13.0 transformers==5.23.0'
python=${PYTHON:-python3}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)/.triton

say() { printf 'triton: %s\n' "$*"; }
stop() { printf 'triton: error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# install_package NAME REASON: from Debian's packages when that is allowed without a question, else say what to do.
install_package() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null ||
        stop "$2; install $1 (Debian: apt-get install $1) and run this again"
    say "installing $1: $2"
    as_root apt-get update -qq && as_root apt-get install -qq -y "$1" >/dev/null || stop "apt-get could not install $1"
}

command -v "$python" >/dev/null || stop "no $python; install Python 3.11 to 3.13 or set PYTHON"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
library_dir=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
stub=$root/dist/pytriton/tritonserver/python_backend_stubs/$version/triton_python_backend_stub
stamp="$SERVER | $MODEL | python $version"

if [ "$(cat "$root/stamp" 2>/dev/null)" = "$stamp" ]; then
    say "already installed in $root"
    exit 0
fi
mkdir -p "$root"
rm -f "$root/stamp"

# Without arguments the stub prints its usage; 127 is the loader failing. Inside the server that would be a hang.
stub_loads() {
    code=0
    LD_LIBRARY_PATH="$library_dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$stub" >/dev/null 2>&1 || code=$?
    [ "$code" != 127 ]
}

"$python" -c 'import ensurepip, venv' 2>/dev/null || install_package "python$version-venv" "$python cannot create environments"

say "models' environment ($MODEL)"
"$python" -m venv --clear "$root/venv"
# shellcheck disable=SC2086  # MODEL is a list
"$root/venv/bin/python" -m pip install -qq $MODEL

say "server ($SERVER)"
rm -rf "$root/dist"
"$root/venv/bin/python" -m pip install -qq --no-deps --target "$root/dist" "$SERVER"
[ -x "$stub" ] || stop "$SERVER has no stub for Python $version; set PYTHON to a version from 3.11 to 3.13"

say "checking that the server's Python stub loads"
stub_loads || install_package "libpython$version" "the stub needs libpython$version.so.1.0"
stub_loads || stop "the stub still does not load; run it to see why: $stub"

printf '%s\n' "$stamp" >"$root/stamp"
say "installed in $root"
