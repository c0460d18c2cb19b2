#!/bin/sh
# Check the types of Triton's models, those of tests included: MYPY [FOLDER]
#
# Each is a folder of its own with a model.py and relative imports, so each is copied as a package of the model's name, links
# followed, and all are checked in one run. Messages name the copies.
set -eu
mypy=$1
copies=${2:-build/types}
rm -rf "$copies"
mkdir -p "$copies"
for folder in deploy/triton/models/*/1 tests/engine/models/*/1; do
    cp -rL "$folder" "$copies/$(basename "$(dirname "$folder")")"
done
# tests/bench/device/engines.py builds this one alike.
cp -r "$copies/vlm_transformers" "$copies/float_model"
mv "$copies/float_model/model.py" "$copies/float_model/served.py"
cp tests/bench/device/float_model.py "$copies/float_model/model.py"
cp -r tests/engine/stand_in/tensorrt_llm "$copies/tensorrt_llm"

set --
for folder in "$copies"/*; do set -- "$@" --package "$(basename "$folder")"; done
MYPYPATH=$copies exec "$mypy" "$@"
