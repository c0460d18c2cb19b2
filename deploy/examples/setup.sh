#!/bin/sh
# Installs what some examples need beside this project, Ray and Jupyter, into build/examples: an environment of its own, which also
# sees the packages of .venv. 0.6 GB.
set -eu

PACKAGES='ray[data]==2.60.0 nbconvert==7.17.2 ipykernel==7.4.0'
python=${PYTHON:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
folder=$root/build/examples

sh "$here/../venv.sh" "$python" "$folder"
"$root/.venv/bin/python" -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
	>"$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/preprocessor.pth"
# shellcheck disable=SC2086  # this is a list
"$folder/bin/python" -m pip install --quiet $PACKAGES
