#!/bin/sh
# Installs SMG, a gateway that prepares prompts in Rust, below .peers/ in the repository root, for `python -m tests.bench.peers`.
# vLLM, the other peer, comes from `make vllm`. Running it again does nothing until a pin below changes.
#
#   PYTHON   interpreter to build the environment from (default: python3)
set -eu

SMG='smg==1.13.0'
python=${PYTHON:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$(CDPATH='' cd -- "$here/../../.." && pwd)
root=$top/.peers

say() { printf 'peers: %s\n' "$*"; }

for command in ffmpeg ffprobe; do
    command -v "$command" >/dev/null || say "no $command: SMG refuses videos without it (apt-get install ffmpeg)"
done
"$python" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("turbojpeg") is None)' ||
    say "no libturbojpeg: SMG decodes JPEGs by other code, and not to Pillow's pixels (apt-get install libturbojpeg0)"

stamp="$SMG | $("$python" --version)"
if [ "$(cat "$root/stamp" 2>/dev/null)" = "$stamp" ]; then
    say "already installed in $root"
    exit 0
fi
mkdir -p "$root"
rm -rf "$root/stamp" "$root/smg"
sh "$top/deploy/venv.sh" "$python" "$root/smg"
"$root/smg/bin/python" -m pip install -qq "$SMG"
printf '%s\n' "$stamp" >"$root/stamp"
say "installed in $root"
