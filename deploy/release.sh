#!/bin/sh
# Build the distributions into dist, and try them as a user would: release.sh PYTHON TOOLS DIST. TOOLS is an environment with
# `build` and `twine`. Nothing is published.
set -eu
python=$1 tools=$2 dist=$3
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -C "$here/.." diff --quiet HEAD -- || {
	echo "there are changes that are not committed; a release is what a commit holds" >&2
	exit 1
}
# Not in the working tree, where files that no commit holds, such as secrets, would get into the source distribution.
mkdir "$work/tree"
git -C "$here/.." archive HEAD | tar -xf - -C "$work/tree"
rm -rf "$dist"
"$tools/bin/python" -m build --outdir "$dist" "$work/tree"
sh "$here/check_wheel.sh" "$tools/bin/python" "$dist"/*.whl
"$tools/bin/twine" check --strict "$dist"/*

# Away from the tree, so that nothing but what is installed can be imported.
sh "$here/venv.sh" "$python" "$work/venv"
"$work/venv/bin/pip" install --quiet --constraint "$here/constraints.txt" "$(ls "$dist"/*.whl)[serve]"
mkdir "$work/sdist"
tar -xzf "$dist"/*.tar.gz -C "$work/sdist" --strip-components 1
rm -r "$work/sdist/preprocessor" "$work/sdist/engine_client"
ln -s "$("$work/venv/bin/python" -I -c 'import engine_client; print(engine_client.__path__[0])')" "$work/sdist/engine_client"
ln -s "$here/../.triton" "$work/sdist/.triton"
cd "$work/sdist"
"$work/venv/bin/pip" check
"$work/venv/bin/preprocessor" doctor --model qwen3-vl
"$work/venv/bin/python" -m deploy.demo triton
echo "$(ls "$dist"): built, checked, installed, and the demo answered; to publish: twine upload $dist/*"
